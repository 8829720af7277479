"""What every formula asks of its input, said once."""

import torch
from torch import Tensor


def as_float(x: Tensor) -> Tensor:
    """Half types upcast to float32, integers converted; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_rows(x: Tensor, name: str, minimum: int = 1) -> Tensor:
    """Return `x` as a floating-point matrix of at least `minimum` finite rows, or raise.

    Within torch.compile its entries are not looked at: that would break the graph.

    Raises:
        ValueError: if `x` is not 2-D, has too few rows or no column, or holds NaN or inf.
    """
    if x.ndim != 2:
        raise ValueError(f"{name} must be 2-D (samples, dimensions), got shape {tuple(x.shape)}")
    if x.shape[0] < minimum or x.shape[1] < 1:
        raise ValueError(
            f"{name} must have at least {minimum} row(s) and one column, got shape {tuple(x.shape)}"
        )
    if not torch.compiler.is_compiling():
        check_finite(x, name)
    return as_float(x)


def check_finite(x: Tensor, name: str) -> None:
    """Raise unless all entries are finite.

    Raises:
        ValueError: if `x` holds NaN or inf.
    """
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got {_count_nonfinite(x)} NaN or inf entries")


def _count_nonfinite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())
