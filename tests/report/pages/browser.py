"""A headless Chromium driven through pipes, by Chrome's DevTools protocol."""

import fcntl
import json
import os
import selectors
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 60


def find_chromium() -> str:
    """The path of a Chromium or Chrome; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs chromium or google-chrome on the PATH")


class Browser:
    """One page in a browser without a window and without a network.

    Attributes:
        errors: what the page wrote to the console as an error, and exceptions in its scripts.
        requests: addresses of everything that it asked for, but data and itself.
    """

    def __init__(self, folder: Path, width: int = 1100, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._calls = 0
        commands, answers = os.pipe(), os.pipe()
        self._in, self._out = commands[1], answers[0]
        # The browser reads from 3 and writes to 4; numbers above them are not overwritten.
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands[0], answers[1]))
        words = [
            find_chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--window-size={width},{height}",
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        ]
        self._process = os.posix_spawn(
            words[0],
            words,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 3),
                (os.POSIX_SPAWN_DUP2, write, 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (commands[0], answers[1], read, write):
            os.close(end)
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._out, selectors.EVENT_READ)
        self._buffer = b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "downloads")
        )

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not self._waiting.select(_SECONDS):
                raise TimeoutError(f"no answer from the browser within {_SECONDS} s")
            data = os.read(self._out, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.errors.append(" ".join(str(a.get("value", a)) for a in event["args"]))
        elif method == "Network.requestWillBeSent":
            url = event["request"]["url"]
            if not url.startswith(("data:", "blob:", "file:")):
                self.requests.append(url)

    def open(self, page: Path) -> None:
        """Open a page and wait until its charts are drawn."""
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.documentElement?.dataset.charts !== undefined")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {condition}; errors: {self.errors}")
            time.sleep(0.05)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        x, y, width, height = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
        )
        return x, y, width, height

    def point(self, x: float, y: float, *kinds: str) -> None:
        """Move the mouse to a place in the window, and press and release it if asked to."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in kinds:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        x, y, width, height = self.place(selector)
        self.point(x + width / 2, y + height / 2, "mousePressed", "mouseReleased")

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = None
            self.call("Browser.close")
        except (RuntimeError, OSError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._waiting.close()
        os.close(self._in)
        os.close(self._out)
