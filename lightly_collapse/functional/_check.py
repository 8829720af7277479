"""What every formula asks of its input, said once."""

import torch
from torch import Tensor

from lightly_collapse.functional._unit import unit_rows


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
    # A finite sum has finite terms, and is much the faster to compute; an infinite one may not.
    if not x.detach().sum().isfinite() and not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got {_count_nonfinite(x)} NaN or inf entries")


def _count_nonfinite(x: Tensor) -> int:
    return int((~x.isfinite()).sum())


def as_double(x: Tensor) -> Tensor:
    """float64, or float32 on a device that has no float64 (Apple's MPS)."""
    return x.float() if x.device.type == "mps" else x.double()


def on_sphere(x: Tensor, name: str) -> Tensor:
    """Return the rows of `x` divided by their length, or raise.

    Raises:
        ValueError: as `check_rows`, or where a row is zero and has no direction.
    """
    x = check_rows(x, name)
    zeros = int((~x.any(dim=1)).sum())
    if zeros:
        raise ValueError(f"{name} must hold no zero row, got {zeros}: it has no direction")
    return unit_rows(x)
