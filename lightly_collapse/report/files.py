"""Output files: the folder is tried before the work, and a file is written whole or not at all."""

import os
import tempfile
from pathlib import Path


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


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it into place.

    Args:
        path: the file; one that is there is replaced.
        content: its bytes.

    Raises:
        OSError: if it cannot be written; the file that was there before is then untouched.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "a.txt", b"whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files for their owner only; a report is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
