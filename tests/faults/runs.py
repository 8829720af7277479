"""Commands in processes of their own that can be killed, started at no cost.

The server of the processes has imported everything: a command that is killed ten times would
otherwise spend its time on imports.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from lightly_collapse import cli

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [__name__, "lightly_collapse.pretrain.sweep", "lightly_collapse.report"]
)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    error: str


def _main(words: list[str], log: str, limit: int | None) -> None:
    os.chdir(ROOT)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, no_limit[1]))
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            if words[0].startswith("detection."):
                status = importlib.import_module(words[0]).main(words[1:])
            else:
                status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    Path(log + ".out").write_text(out.getvalue())
    Path(log + ".err").write_text(error.getvalue())
    os._exit(int(status or 0))


def start(words: list[str], log: Path, limit: int | None = None) -> ForkServerProcess:
    """Start a command.

    Args:
        words: of the command line; the first may be a module of `detection`.
        log: where what it printed goes, with `.out` and `.err` at its end.
        limit: bytes that a file may have; more is a full disk.
    """
    process = _SERVER.Process(target=_main, args=(words, str(log), limit))
    process.start()
    return process


def finish(process: ForkServerProcess, log: Path, seconds: float = 600) -> Answer:
    """Wait for the end of a command."""
    process.join(seconds)
    assert process.exitcode is not None, "the command does not end"
    out, error = (log.with_name(log.name + end) for end in (".out", ".err"))
    return Answer(process.exitcode, out.read_text(), error.read_text())


def kill_when_writing(process: ForkServerProcess, folder: Path, seconds: float) -> bool:
    """Kill a command while it writes a file, or after so many seconds; whether it was writing."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.is_alive():
        if any(folder.rglob(".*.tmp")):
            process.kill()
            process.join()
            return True
    process.kill()
    process.join()
    return False


def temporary_files(folder: Path) -> list[Path]:
    """What a killed command left half written, and locks."""
    return [*folder.rglob(".*.tmp"), *folder.rglob(".lock")]
