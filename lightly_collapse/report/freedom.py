"""How well a jackknife's blocks tell the spread: the degrees of freedom of Student's t.

The variance of n equal normal numbers has n - 1. Of numbers with kurtosis k it has
2 n / (k - (n - 3) / (n - 1)) (O'Neill 2014, "Some useful moment results in sampling problems", The
American Statistician 68), fewer if few of the rows decide the measure. A block of m rows has the
kurtosis 3 + e / m where a row's influence on the measure has the excess e. The influence of a row x
on a function f of the eigenvalues of the second moments, about the mean where the measure is of
centred rows, is to first order the sum of df/dlambda_j (u_j . x)^2 over the eigenvectors u_j.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from lightly_collapse.functional.spectrum import (
    alpha_req,
    condition_number,
    effective_rank,
    nesum,
    participation_ratio,
    rankme_of_spectrum,
    stable_rank,
)

_UNSEEN = 3.0
"""A sample mostly lacks the rarest rows and shows too small an excess: so many times is assumed.
Found with `tests/report/test_coverage.py`."""
SPECTRAL: Mapping[str, Callable[[Tensor], Tensor]] = {
    "rankme": rankme_of_spectrum,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "nesum": nesum,
    "condition_number": condition_number,
    "alpha_req": alpha_req,
}
"""Measures of singular values, by name."""
UNCENTRED = ("rankme", "stable_rank")
"""Those of the rows as they are, in a report; the others are of centred rows."""


def excess_kurtosis(x: Tensor) -> dict[str, float]:
    """Excess kurtosis of the influence of rows on every measure of their spectrum.

    Args:
        x: finite rows, (N, D) of any floating dtype.

    Returns:
        By name of the measure, 0 for numbers of a normal distribution; without those that the rows
        do not determine.

    Examples:
        >>> x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> x[0] = torch.tensor([40.0, 0.0, 0.0, 0.0])
        >>> excess_kurtosis(x[1:])["effective_rank"] < 20 < excess_kurtosis(x)["effective_rank"]
        True
    """
    y = x.detach().double()
    y = y / y.abs().max()  # squares of large numbers are infinite
    if not y.isfinite().all():  # all are zero
        return {}
    centred = [name for name in SPECTRAL if name not in UNCENTRED]
    return _excess(y, UNCENTRED) | _excess(y - y.mean(dim=0), centred)


def _excess(y: Tensor, names: Iterable[str]) -> dict[str, float]:
    values, vectors = torch.linalg.eigh(y.T @ y / len(y))
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    squares = (y @ vectors[:, kept]).square()
    found = {}
    for name in names:
        eigenvalues = values[kept].flip(0).requires_grad_()
        with suppress(ValueError), torch.enable_grad():
            value = SPECTRAL[name](eigenvalues.sqrt())
            (slope,) = torch.autograd.grad(value, eigenvalues)
            influence = squares @ slope.flip(0)
            influence = influence - influence.mean()
            kurtosis = influence.pow(4).mean() / influence.square().mean().square()
            if kurtosis.isfinite():
                found[name] = float(kurtosis) - 3
    return found


def degrees_of_freedom(blocks: int, rows: float, excess: float) -> float:
    """Those of the variance between the blocks.

    Args:
        blocks: how many, two or more.
        rows: of a block.
        excess: of the influence of a row.

    Returns:
        `blocks` - 1 where the excess is not positive, fewer else, at least 1.

    Examples:
        >>> degrees_of_freedom(20, 25.0, 0.0), round(degrees_of_freedom(20, 25.0, 20.0), 1)
        (19.0, 8.9)
    """
    kurtosis = _UNSEEN * max(excess, 0.0) / rows
    return max(2 * blocks / (kurtosis + 2 * blocks / (blocks - 1)), 1.0)
