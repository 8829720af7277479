"""Files of `torch.save`, read without running code that they may hold."""

import argparse
import errno
import os
import pathlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Unpickling damaged bytes can fail at any of its steps; a fuzz test keeps this list complete.
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

# Plain containers of values that training scripts put beside the weights (`args`, paths, NumPy's
# numbers). Building one calls nothing that the file could choose.
_PLAIN = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    np.dtype,
    *(getattr(np.dtypes, name) for name in ("Float32DType", "Float64DType", "Int64DType")),
    *(getattr(np.dtypes, name) for name in ("Int32DType", "BoolDType", "UInt8DType")),
    type(np.float64(0)),
]
_NUMPY_SCALARS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)

# What trainers call the file of every run alike, and what they count epochs and steps with.
_UNTELLING = ("last", "best", "model", "checkpoint", "pytorch_model", "model_final", "weights")
_COUNTED = ("epoch", "step", "checkpoint-", "checkpoint_")


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # What torch.load goes on to advise, to run the file's code, is not for untrusted files.
    return line.partition(" In PyTorch 2.6, we changed")[0]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of `torch.save` without running code that it may hold.

    Args:
        path: the file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        ValueError: if the file is corrupt, or holds objects other than tensors and plain values.
        OSError: if it cannot be opened.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with Path(path).open("rb") as file, torch.serialization.safe_globals(_allowed()):
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"checkpoint {path}: cannot be loaded with weights_only=True, damaged or holding "
                f"more than tensors and plain values ({reason(error)}); save the state dict alone"
            ) from error
        except (*CORRUPT, OSError) as error:
            # A file that is cut short is sought outside.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise ValueError(
                f"checkpoint {path}: corrupt or not a checkpoint ({reason(error)})"
            ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"checkpoint {path}: holds a {type(loaded).__name__}, not a state dict; save "
            "model.state_dict()"
        )
    return loaded


def checkpoint_name(path: str | os.PathLike[str]) -> str:
    """The name of a checkpoint's file, or of its folder where the former says nothing.

    Args:
        path: of the checkpoint.

    Returns:
        Without the suffix.

    Examples:
        >>> checkpoint_name("runs/byol/last.ckpt"), checkpoint_name("runs/byol.pth")
        ('byol', 'byol')
        >>> checkpoint_name("runs/byol/epoch=9-step=1000.ckpt")
        'byol, epoch=9-step=1000'
    """
    stem, folder = Path(path).stem, Path(path).absolute().parent.name
    if not folder:
        return stem
    if stem in _UNTELLING:
        return folder
    return f"{folder}, {stem}" if stem.startswith(_COUNTED) else stem


def _allowed() -> list[Any]:
    scalar: Any = np.float64(0).__reduce__()[0]
    # PyTorch takes a class under another name since 2.7.
    takes_names = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)
    return [*_PLAIN, *((scalar, n) if takes_names else scalar for n in _NUMPY_SCALARS)]
