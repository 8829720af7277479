"""Output files: the folder is checked before the work starts, and writes are atomic."""

import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

# Windows has no fcntl; temporary files of killed processes then stay.
fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}\{_SUFFIX}")  # as mkstemp names them below
_LOCK_ATTEMPTS = 10


def check_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder if needed and make sure that a file can be written in it.

    Temporary files that killed processes left in it are removed.

    Args:
        path: the folder.

    Returns:
        The folder as a path.

    Raises:
        OSError: if it cannot be made or written, naming it.

    Examples:
        >>> check_writable_folder(tempfile.gettempdir()).is_dir()
        True
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _remove_unlocked(p for p in folder.iterdir() if _TEMPORARY.fullmatch(p.name))
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error}") from error
    return folder


def printable(name: str) -> str:
    r"""A name in which bytes that are no text, as names of files can hold, are written out.

    Examples:
        >>> printable(os.fsdecode(b"caf\xe9.npy"))
        'caf\\udce9.npy'
    """
    return name.encode(errors="backslashreplace").decode()


def atomic_write(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]
) -> None:
    """Write a file under a temporary name in the same folder, then rename it into place.

    A reader of `path` finds the old file or the new one and never a part of one, also after a crash
    or on a full disk. The temporary file is locked while it is written; those that killed processes
    left for the same `path` are removed.

    Args:
        path: the file; an existing one is replaced.
        content: its bytes, or a function that writes them to the open binary file.

    Raises:
        OSError: if it cannot be written; an existing file is then unchanged.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(Path(folder) / "a.txt", b"complete")
        ...     (Path(folder) / "a.txt").read_text()
        'complete'
    """
    path = Path(path)
    _remove_orphans(path)
    handle, temporary = _locked_temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's mode is 0600; the umask, which can only be read by setting it, gives the usual.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # torch.save turns the OSError of a full disk, and an interrupt, into a RuntimeError.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, RuntimeError) and isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if isinstance(error, (OSError, RuntimeError)) and isinstance(cause, OSError):
            if cause.errno is None:
                raise cause from None
            raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error
        raise


def _locked_temporary(path: Path) -> tuple[int, str]:
    """A temporary file for `path`, locked: its handle and name.

    Between making and locking it, another process may have taken it for an orphan: then another is
    made. Where files cannot be locked, the last one is taken unlocked.
    """
    for attempt in range(_LOCK_ATTEMPTS):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        is_locked = _try_lock(handle) and os.fstat(handle).st_nlink > 0
        if is_locked or fcntl is None or attempt == _LOCK_ATTEMPTS - 1:
            break
        os.close(handle)
        Path(name).unlink(missing_ok=True)
    return handle, name


def _remove_orphans(path: Path) -> None:
    """Remove temporary files for `path` whose writer no longer exists."""
    _remove_unlocked(path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"))


def _remove_unlocked(paths: Iterable[Path]) -> None:
    for orphan in paths if fcntl is not None else ():
        try:
            with orphan.open("rb") as file:
                if _try_lock(file.fileno()):
                    orphan.unlink()
        except OSError:  # removed by another process, or not ours to remove
            continue


def _try_lock(handle: int) -> bool:
    """Lock an open file until it is closed; False where another process has it locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
