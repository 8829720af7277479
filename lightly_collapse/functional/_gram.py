"""Products X^T X that keep the digits of float32: in float64, and half of them."""

import torch
from torch import Tensor

_BLOCKS = 4
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
    """X^T X; by half of the products where no gradient is wanted.

    Args:
        x: (n, d) rows.

    Returns:
        (d, d) symmetric matrix.
    """
    if x.requires_grad:
        return x.mT @ x
    upper = x.new_zeros(x.shape[1], x.shape[1])
    add_gram(upper, x)
    return upper.triu() + upper.triu(1).mT


def tall_singular_values(z: Tensor) -> Tensor:
    """Singular values of a float32 matrix with many more rows than columns.

    The roots of the eigenvalues of Z^T Z in float64, which costs a fraction of a decomposition of
    Z. Down to 1e-8 of the largest they are more exact than those that float32 arithmetic gives.

    Args:
        z: (n, d) finite float32 rows, not all zero.

    Returns:
        (d,) singular values in descending order, float32.
    """
    largest = z.abs().max()
    upper = z.new_zeros(z.shape[1], z.shape[1], dtype=torch.float64)
    for rows in torch.split(z, _ROWS):
        add_gram(upper, rows.double() / largest)
    eigenvalues = torch.linalg.eigvalsh(upper, UPLO="U").clamp(min=0)
    s: Tensor = (eigenvalues.flip(0).sqrt() * largest).float()
    return s
