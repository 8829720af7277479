"""Files written whole or not at all; and what reading a broken one can raise."""

import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Unpickling runs into broken bytes at any of its steps; a fuzz test keeps this list complete.
CORRUPT = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    RuntimeError,
)


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    Whoever reads `path`, also after a crash, finds the old file or the new one, never half of one.

    Args:
        path: the file to write; its folder must exist.
        write: called once with the open binary file.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp's 0600 would hide the file from a team.
    mask = os.umask(0)
    os.umask(mask)
    return mask
