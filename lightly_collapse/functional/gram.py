"""Products X^T X by part of their products, and their eigenvalues in float64."""

import torch
from torch import Tensor

_BLOCKS = 4
_BANDED = 256  # from this side on, part of the products is faster than all of them
_ROWS = 2048


def add_gram(upper: Tensor, x: Tensor) -> None:
    """Add X^T X to the upper triangle of a matrix, in place.

    Taken in four bands, three eighths of the products lie below the diagonal and are left out.

    Args:
        upper: (d, d) matrix.
        x: (n, d) rows of its dtype.
    """
    d = x.shape[1]
    step = max(-(-d // _BLOCKS), 128)
    for start in range(0, d, step):
        band = upper[start : start + step, start:]
        band.addmm_(x[:, start : start + step].mT, x[:, start:])


def gram(x: Tensor) -> Tensor:
    """X^T X; by two thirds of the products where no gradient is wanted.

    Args:
        x: (n, d) rows.

    Returns:
        (d, d) symmetric matrix.
    """
    d = x.shape[1]
    if x.requires_grad or d < _BANDED:
        return x.mT @ x
    result = x.new_empty(d, d)
    step = -(-d // _BLOCKS)
    for start in range(0, d, step):
        stop = start + step
        result[start:stop, start:].addmm_(x[:, start:stop].mT, x[:, start:], beta=0)
        result[start:stop, :start] = result[:start, start:stop].mT
    return result


def tall_singular_values(z: Tensor) -> Tensor:
    """Singular values of a float32 matrix with at least as many rows as columns.

    The roots of the eigenvalues of Z^T Z in float64, which costs a fraction of a decomposition of
    Z. Down to 1e-8 of the largest they are more exact than those that float32 arithmetic gives.

    Args:
        z: (n, d) finite float32 rows, n >= d, not all zero.

    Returns:
        (d,) singular values in descending order, float32.
    """
    largest = z.abs().max()
    upper = z.new_zeros(z.shape[1], z.shape[1], dtype=torch.float64)
    for rows in torch.split(z, _ROWS):
        add_gram(upper, rows.double() / largest)
    eigenvalues = torch.linalg.eigvalsh(upper, UPLO="U").clamp(min=0)
    return (eigenvalues.flip(0).sqrt() * largest).float()
