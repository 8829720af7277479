"""Checks of tensors that every room uses, and directions of rows."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def as_float(x: Tensor) -> Tensor:
    """Half types upcast to float32, integers converted; float32 and float64 as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_rows(x: Tensor, name: str, minimum: int = 1) -> Tensor:
    """Return `x` as a floating-point matrix of at least `minimum` finite rows, or raise.

    Within torch.compile its entries are not looked at: that would break the graph.

    Raises:
        ValueError: if `x` is not 2-D, has too few rows or no column, or holds NaN, inf or complex
            numbers.
    """
    if x.ndim != 2:
        raise ValueError(f"{name} must be 2-D (samples, dimensions), got shape {tuple(x.shape)}")
    if x.shape[0] < minimum or x.shape[1] < 1:
        raise ValueError(
            f"{name} must have at least {minimum} row(s) and one column, got shape {tuple(x.shape)}"
        )
    if x.is_complex():
        raise ValueError(f"{name} must be real numbers, got {x.dtype}")
    if not torch.compiler.is_compiling():
        check_finite(x, name)
    return as_float(x)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless a word is one of the choices.

    Raises:
        ValueError: naming the argument, the choices and what came.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


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


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm; a zero row stays zero and gets no gradient.

    In units of its largest entry no square of a row under- or overflows. `normalize` alone divides
    a row shorter than 1e-12 by 1e-12, and the gradient of a zero row as well.

    Args:
        x: (..., d) vectors, float32 or float64.

    Returns:
        (..., d) vectors of norm 1 or 0.

    Examples:
        >>> unit_rows(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    return normalize(x / torch.where(largest > 0, largest, torch.inf), dim=-1)
