"""One writer a folder: a lock that ends with the process that holds it."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Windows has no fcntl; nothing is locked there.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

_NAME = ".lock"
_SECONDS = 10  # in which the processes that read images for a killed one have ended
_held: dict[Path, int] = {}  # from a lock to its open file; -1 where another process opened it


class HeldError(OSError):
    """Another process writes into a folder; the message names both."""


@contextmanager
def hold_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that writes into a folder.

    The lock goes with the process, however that ends. A process may hold a folder several times.
    On a file system without locks nothing is held.

    Args:
        folder: an existing one.

    Raises:
        HeldError: if another process holds it and does not let go within ten seconds.
        OSError: if no file can be written in it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, hold_folder(folder):
        ...     os.listdir(folder)
        ['.lock']
    """
    path = Path(folder).resolve() / _NAME
    if fcntl is None or path in _held:
        yield
        return
    limit = time.monotonic() + _SECONDS
    while (file := path.open("a+")) and not _is_locked(file, path):
        file.seek(0)
        holder = file.read() or "another process"
        file.close()
        if time.monotonic() > limit:
            raise HeldError(
                f"{folder} is being written by {holder}: wait for its end, or give another folder"
            )
        time.sleep(0.1)
    _held[path] = file.fileno()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        _held.pop(path, None)
        path.unlink(missing_ok=True)
        file.close()


def lock_descriptors(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """The open files that a process has to inherit so that a folder stays held while it runs.

    Args:
        folder: one that this process holds, or not.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, hold_folder(folder):
        ...     len(lock_descriptors(folder))
        1
    """
    found = _held.get(Path(folder).resolve() / _NAME, -1)
    return () if found < 0 else (found,)


def keep_held(folder: str | os.PathLike[str]) -> None:
    """Take a folder for held by this process, which the one that started it holds for it.

    Args:
        folder: that the parent holds with `hold_folder`.

    Examples:
        >>> keep_held("runs/held-by-the-parent")
    """
    _held[Path(folder).resolve() / _NAME] = -1


def _is_locked(file: Any, path: Path) -> bool:
    """Lock an open file; False where another process has, or has just removed it."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
