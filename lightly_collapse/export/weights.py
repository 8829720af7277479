"""detectron2's weight files, read without running what may be hidden in them."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightly_collapse.io.checkpoints import CORRUPT, read_checkpoint, reason

# All that a pickled dictionary of arrays is made of, under the names of NumPy 1 and 2. None of
# these calls anything that its arguments could choose.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


def read_detectron2(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a weight file in detectron2's format.

    Args:
        path: a `.pkl` or `.pth` file: a dictionary of arrays by name, bare or under `model`.

    Returns:
        The arrays by name.

    Raises:
        ValueError: if the file is corrupt, holds anything but numbers by name, or asks for code to
            be run.
        OSError: if it cannot be opened.
    """
    path = Path(path)
    loaded: Any = read_pickle(path) if path.suffix == ".pkl" else read_checkpoint(path)
    model = loaded["model"] if isinstance(loaded.get("model"), dict) else loaded
    arrays = {}
    for name, value in model.items():
        if not isinstance(name, str):
            raise ValueError(f"weights {path}: names must be strings, got {name!r:.60}")
        array = value if isinstance(value, np.ndarray) else _as_array(value)
        if array is None or array.dtype.kind not in "fiub":
            raise ValueError(
                f"weights {path}: must be a dictionary of arrays, but {name!r:.60} is "
                f"{'an array of objects' if array is not None else type(value).__name__}"
            )
        arrays[name] = array
    if not arrays:
        raise ValueError(f"weights {path}: must be a dictionary of arrays, got an empty one")
    return arrays


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Unpickle a dictionary of arrays and plain values; any other class or function is refused.

    Raises:
        ValueError: if the file is corrupt, no dictionary, or names anything else.
        OSError: if it cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            # detectron2 and Caffe2 wrote their files with Python 2, whose strings are latin1.
            loaded = _Unpickler(file, encoding="latin1").load()
        except _RefusedError as error:
            raise ValueError(f"weights {path}: {error}") from error
        except CORRUPT as error:
            raise ValueError(
                f"weights {path}: corrupt or no pickle file ({reason(error)})"
            ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"weights {path}: must be a dictionary of arrays, got a {type(loaded).__name__}"
        )
    return loaded


class _RefusedError(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) not in _ALLOWED:
            raise _RefusedError(
                f"asks for {module}.{name}, which no dictionary of arrays needs; not loaded, "
                f"since that could run code"
            )
        return super().find_class(module, name)


def _as_array(value: Any) -> npt.NDArray[Any] | None:
    return value.detach().float().numpy() if hasattr(value, "detach") else None
