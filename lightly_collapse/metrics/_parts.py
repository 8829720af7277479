"""Participation ratios from the scatter matrices of parts of the rows, without the bias of few."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ratio_of_parts(scatters: Sequence[Tensor]) -> float:
    """(tr S)^2 / tr S^2 of the covariance S, from products of different parts alone.

    Args:
        scatters: (D, D) centred scatter matrices of disjoint parts; their upper triangles count.

    Returns:
        The ratio; nan where the estimate of tr S^2 is not positive.
    """
    return _ratio(*_moments(scatters))


def ratios_of_parts(scatters: Sequence[Tensor]) -> list[float]:
    """`ratio_of_parts` without each of the parts in turn."""
    traces, products = _moments(scatters)
    n = len(scatters)
    kept = [[j for j in range(n) if j != i] for i in range(n)]
    return [_ratio(traces[k], products[k][:, k]) for k in kept]


def _moments(scatters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Traces of the matrices, and the inner products of every two; both in units of the largest."""
    diagonals = torch.stack([s.diagonal() for s in scatters])
    traces = diagonals.sum(dim=1)
    upper = traces.new_zeros(len(scatters), len(scatters))
    for i, one in enumerate(scatters):
        for j, other in enumerate(scatters[: i + 1]):
            upper[i, j] = upper[j, i] = (one * other).triu().sum()
    products = 2 * upper - diagonals @ diagonals.T
    unit = traces.max()
    return traces / unit, products / unit.square()


def _ratio(traces: Tensor, products: Tensor) -> float:
    numerator = traces.sum().square() - traces.square().sum()
    denominator = products.sum() - products.diagonal().sum()
    return float(numerator / denominator) if denominator > 0 else float("nan")
