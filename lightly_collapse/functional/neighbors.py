"""Exact k nearest neighbours, oneself left out by index, and distances with a gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightly_collapse.functional._check import as_float

_CHUNK_BYTES = 64 * 2**20


def _location_and_scale(reference: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the power of two below the largest deviation from it.

    In units of the latter no square under- or overflows, and to divide by it rounds nothing.
    """
    mean = reference.mean(dim=0)
    deviation = (reference - mean).abs().max()
    deviation = torch.where(deviation > 0, deviation, 1).clamp(min=torch.finfo(mean.dtype).tiny)
    exponent = torch.frexp(deviation).exponent - 1
    return mean, torch.ldexp(torch.ones_like(deviation), exponent)


def _in_one_dtype(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or better: in the wider of their types."""
    dtype = torch.promote_types(as_float(x).dtype, as_float(reference).dtype)
    return x.to(dtype), reference.to(dtype)


def nearest_neighbors(
    x: Tensor, reference: Tensor, k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `reference` to each row of `x`, by Euclidean distance.

    Distances are computed from differences, not from inner products, so rows that nearly coincide
    keep theirs; rows of `x` are taken in chunks, so that memory stays bounded.

    Args:
        x: (n, d) queries; half types are computed in float32.
        reference: (m, d) points.
        k: number of neighbours.
        exclude: (n,) for each query the row of `reference` that is the query itself, left out by
            its index; rows equal to it still count.

    Returns:
        (n, k) distances in ascending order and (n, k) int64 rows of `reference`.

    Raises:
        ValueError: if `k` is below 1 or above the number of candidates, or the widths differ.

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [1.0]])
        >>> distances, rows = nearest_neighbors(x, x, k=1, exclude=torch.arange(3))
        >>> distances.squeeze().tolist(), rows.squeeze().tolist()
        ([1.0, 0.0, 0.0], [1, 2, 1])
    """
    x, reference = _in_one_dtype(x, reference)
    if x.shape[1] != reference.shape[1]:
        raise ValueError(
            f"reference must have the width of x, {x.shape[1]}, got {reference.shape[1]}"
        )
    candidates = reference.shape[0] - (exclude is not None)
    if not 1 <= k <= candidates:
        raise ValueError(
            f"k must be between 1 and the number of candidate neighbours, {candidates}, got {k}"
        )
    rows = max(1, _CHUNK_BYTES // (reference.shape[0] * x.element_size()))
    found = []
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        _, scale = _location_and_scale(reference)
        reference = reference / scale
        for start in range(0, x.shape[0], rows):
            distances = torch.cdist(
                x[start : start + rows] / scale,
                reference,
                compute_mode="donot_use_mm_for_euclid_dist",
            )
            if exclude is not None:
                distances.scatter_(1, exclude[start : start + rows, None], torch.inf)
            found.append(distances.topk(k, largest=False, sorted=True))
        return torch.cat([f.values for f in found]) * scale, torch.cat([f.indices for f in found])


def neighbor_distances(
    x: Tensor, reference: Tensor, k: int, exclude: Tensor | None = None
) -> Tensor:
    """Distances of `nearest_neighbors`, with a gradient with respect to `x`.

    The neighbours are constants: no gradient reaches `reference`. The gradient of a zero distance
    is taken to be zero.

    Args:
        x: (n, d) queries; half types are computed in float32.
        reference: (m, d) points.
        k: number of neighbours.
        exclude: (n,) the row of `reference` that is the query itself.

    Returns:
        (n, k) distances in ascending order.

    Raises:
        ValueError: as `nearest_neighbors`.

    Examples:
        >>> x = torch.tensor([[0.0, 0.0]], requires_grad=True)
        >>> neighbor_distances(x, torch.tensor([[3.0, 4.0]]), k=1).sum().backward()
        >>> x.grad
        tensor([[-0.6000, -0.8000]])
    """
    distances: Tensor = _NeighborDistances.apply(*_in_one_dtype(x, reference), k, exclude)
    return distances


class _NeighborDistances(torch.autograd.Function):
    """d r_ij / d x_i = (x_i - y_j) / r_ij, summed over j by one weighted bag of neighbour rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor, k: int, exclude: Tensor | None) -> Tensor:
        distances, rows = nearest_neighbors(x, reference, k, exclude)
        ctx.save_for_backward(x, reference, distances, rows)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, reference, distances, rows = ctx.saved_tensors
        # x_i sum_j w_ij - sum_j w_ij y_j is taken about the mean point and in units of the spread:
        # where distances are small beside the mean, the two terms would cancel.
        mean, scale = _location_and_scale(reference)
        weights = torch.where(distances > 0, grad / (distances / scale), 0)
        pulled = torch.nn.functional.embedding_bag(
            rows, (reference - mean) / scale, per_sample_weights=weights, mode="sum"
        )
        pull = (x - mean) / scale * weights.sum(dim=1, keepdim=True) - pulled
        return pull, None, None, None
