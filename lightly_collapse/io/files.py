"""Output files: the folder is checked before the work starts, and writes are atomic."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def check_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder if needed and make sure that a file can be written in it.

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
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error}") from error
    return folder


def atomic_write(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]
) -> None:
    """Write a file under a temporary name in the same folder, then rename it into place.

    Whoever reads `path`, also after a crash, finds the old file or the new one, never half of one.

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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
        # mkstemp's mode is 0600; the umask, which can only be read by setting it, gives the usual.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
