"""Exact k nearest neighbours, oneself left out by index, and distances with a gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from typing_extensions import override

from lightly_collapse._checks import as_float, check_finite

_PRODUCT_BYTES = 64 * 2**20
_GATHER_BYTES = 3 * 2**19  # what is gathered is read again at once: let it stay in the cache
_CANCELS = 2.0**-6  # of the length of a sample: a nearer neighbour costs the product 6 bits
_MORE = 8  # candidates than neighbours: in a cloud of points the next ones lie close behind

_Found = tuple[Tensor, Tensor, Tensor]  # distances, rows, and whether they are certain


def _unit(x: Tensor, reference: Tensor) -> Tensor | None:
    """A power of two to divide by, which rounds nothing, where squares could under- or overflow."""
    info = torch.finfo(x.dtype)
    longest = torch.maximum(*(torch.linalg.vector_norm(p, dim=1).amax() for p in (x, reference)))
    if info.tiny**0.25 < longest < info.max**0.25:
        return None
    largest = torch.maximum(x.abs().amax(), reference.abs().amax())
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)


def _location(reference: Tensor) -> Tensor | None:
    """The mean point, where the points lie farther from the origin than from each other."""
    mean = reference.mean(dim=0)
    squares = torch.linalg.vector_norm(reference).square() / len(reference)
    return mean if 2 * mean.square().sum() > squares else None


def _in_one_dtype(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or better: in the wider of their types."""
    dtype = torch.promote_types(as_float(x).dtype, as_float(reference).dtype)
    return x.to(dtype), reference.to(dtype)


def nearest_neighbors(
    x: Tensor, reference: Tensor, k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `reference` to each row of `x`, by Euclidean distance.

    Exact, at the price of a matrix product: candidates, somewhat more than k, are chosen by
    |y|^2 - 2 x.y, and their distances are then computed from differences, so that rows that nearly
    coincide keep theirs. Where the k-th of those is not below what every other row can be shown to
    exceed, given the rounding of the product, the query is done again by a product in float64 and,
    where that cannot tell either, from differences alone. Queries are taken in chunks, so that
    memory stays bounded.

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
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit = _unit(x, reference)
        if unit is not None:
            x, reference = x / unit, reference / unit
        mean = _location(reference)
        distances, rows, certain = _by_products(x, reference, mean, k, exclude, dtype=x.dtype)
        passes = [_by_differences]
        if x.dtype == torch.float32 and x.device.type != "mps":  # which has no float64
            passes.insert(0, _by_double_products)
        for search in passes:
            if certain.all():
                break
            todo = (~certain).nonzero().squeeze(1)
            own = None if exclude is None else exclude[todo]
            distances[todo], rows[todo], certain[todo] = search(x[todo], reference, mean, k, own)
        return distances if unit is None else distances * unit, rows


def _by_products(
    x: Tensor,
    reference: Tensor,
    mean: Tensor | None,
    k: int,
    exclude: Tensor | None,
    *,
    dtype: torch.dtype,
) -> _Found:
    """Neighbours among candidates found by matrix products in `dtype`, and which are certain."""
    candidates = reference.shape[0] - (exclude is not None)
    number = min(k + _MORE, candidates)
    eps = torch.finfo(dtype).eps
    # Distances from the mean point are shorter, and so is the rounding of their products.
    centred = reference.to(dtype) if mean is None else reference.to(dtype) - mean
    length = torch.linalg.vector_norm(centred, dim=1)
    chunks = _chunks(x.shape[0], reference.shape[0] * centred.element_size(), _PRODUCT_BYTES)
    product = centred.new_empty(chunks[0].stop, reference.shape[0])  # once: fresh pages cost
    found = []
    for chunk in chunks:
        queries = x[chunk].to(dtype) if mean is None else x[chunk].to(dtype) - mean
        squares = product[: queries.shape[0]]
        torch.addmm(length.square(), queries, centred.T, alpha=-2, out=squares)
        if exclude is not None:
            squares.scatter_(1, exclude[chunk, None], torch.inf)
        near = squares.topk(number, largest=False, sorted=False)
        exact = _candidate_distances(x[chunk], reference, near.indices)
        distances, order = exact.topk(k, largest=False, sorted=True)
        rows = near.indices.gather(1, order)

        # A row that is no candidate is at least as far as the farthest candidate, but for rounding.
        # A sum of d products, in whatever order, is off by at most d eps / 2 times the sum of their
        # magnitudes; twice that leaves room for the exact distances and the sums around it.
        query_length, longest = torch.linalg.vector_norm(queries, dim=1), length.max()
        rounding = (x.shape[1] + 8) * eps * (query_length + longest).square()
        rounding = rounding + 4 * _factor_rounding(dtype) * query_length * longest
        others = near.values.amax(dim=1) + query_length.square() - rounding
        # Nearer by less than the rounding of one distance is not nearer.
        furthest = distances[:, -1].to(dtype).square() * (1 - torch.finfo(x.dtype).eps)
        certain = (furthest <= others) | (furthest == 0)
        found.append((distances, rows, certain | (number == candidates)))
    return _concatenate(found)


def _by_double_products(
    x: Tensor, reference: Tensor, mean: Tensor | None, k: int, exclude: Tensor | None
) -> _Found:
    return _by_products(x, reference, mean, k, exclude, dtype=torch.float64)


def _by_differences(
    x: Tensor, reference: Tensor, mean: Tensor | None, k: int, exclude: Tensor | None
) -> _Found:
    """Neighbours among all rows, every distance computed from differences; slow."""
    found = []
    for chunk in _chunks(x.shape[0], reference.shape[0] * x.element_size(), _PRODUCT_BYTES):
        every = torch.cdist(x[chunk], reference, compute_mode="donot_use_mm_for_euclid_dist")
        if exclude is not None:
            every.scatter_(1, exclude[chunk, None], torch.inf)
        nearest = every.topk(k, largest=False, sorted=True)
        found.append((*nearest, torch.ones_like(nearest.indices[:, 0], dtype=torch.bool)))
    return _concatenate(found)


def _chunks(n: int, bytes_per_row: int, limit: int) -> list[slice]:
    rows = max(1, limit // bytes_per_row)
    return [slice(start, min(start + rows, n)) for start in range(0, max(n, 1), rows)]


def _concatenate(found: list[_Found]) -> _Found:
    distances, rows, certain = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(rows), torch.cat(certain)


def _factor_rounding(dtype: torch.dtype) -> float:
    """Relative rounding of a matrix product's factors: nothing, unless reduced precision is on."""
    if dtype == torch.float64:
        return 0.0
    try:
        return {"highest": 0.0, "high": 2.0**-10}.get(torch.get_float32_matmul_precision(), 2.0**-7)
    except RuntimeError:  # set for some backend by itself, and there is no asking for which
        return 2.0**-7


def _candidate_distances(x: Tensor, reference: Tensor, rows: Tensor) -> Tensor:
    distances = x.new_empty(rows.shape)
    bytes_per_row = rows.shape[1] * reference.shape[1] * x.element_size()
    chunks = _chunks(x.shape[0], bytes_per_row, _GATHER_BYTES)
    gathered = x.new_empty(chunks[0].stop * rows.shape[1], reference.shape[1])
    for chunk in chunks:
        near = rows[chunk].flatten()
        differences = torch.index_select(reference, 0, near, out=gathered[: len(near)])
        differences = differences.view(-1, rows.shape[1], reference.shape[1]).sub_(x[chunk, None])
        torch.linalg.vector_norm(differences, dim=2, out=distances[chunk])
    return distances


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
    return _NeighborDistances.apply(*_in_one_dtype(x, reference), k, exclude)


# Opaque custom operator: how many queries need a second pass depends on the data.
@custom_op(
    "lightly_collapse::nearest_neighbors",
    mutates_args=(),
    schema="(Tensor x, Tensor reference, int k, Tensor? exclude, bool check) -> (Tensor, Tensor)",
)
def _search(
    x: Tensor, reference: Tensor, k: int, exclude: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    if check:
        check_finite(x, "x")
        check_finite(reference, "reference")
    return nearest_neighbors(x, reference, k, exclude)


@_search.register_fake
def _(
    x: Tensor, reference: Tensor, k: int, exclude: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


@custom_op(
    "lightly_collapse::pull",
    mutates_args=(),
    schema="(Tensor x, Tensor reference, Tensor rows, Tensor weights, Tensor distances) -> Tensor",
)
def _pull(x: Tensor, reference: Tensor, rows: Tensor, weights: Tensor, distances: Tensor) -> Tensor:
    """sum_j w_ij (x_i - y_j), y_j the rows of the reference in the i-th row of `rows`.

    As x_i sum_j w_ij - sum_j w_ij y_j, one weighted bag of rows. The two terms cancel where the
    neighbours are much nearer than the origin; those samples are summed from differences instead.
    `distances` are |x_i - y_j|, in ascending order.
    """
    mean = _location(reference)
    centred, points = (x, reference) if mean is None else (x - mean, reference - mean)
    bag = torch.nn.functional.embedding_bag
    pulled = bag(rows, points, per_sample_weights=weights, mode="sum")
    result = centred * weights.sum(dim=1, keepdim=True) - pulled
    length = torch.linalg.vector_norm(centred, dim=1)
    near = (distances[:, 0] < _CANCELS * length).nonzero().squeeze(1)
    bytes_per_row = rows.shape[1] * x.shape[1] * x.element_size()
    for chunk in _chunks(len(near), bytes_per_row, _PRODUCT_BYTES) if len(near) else []:
        i = near[chunk]
        differences = x[i, None] - reference[rows[i]]
        result[i] = (weights[i, None] @ differences).squeeze(1)
    return result


@_pull.register_fake
def _(x: Tensor, reference: Tensor, rows: Tensor, weights: Tensor, distances: Tensor) -> Tensor:
    return torch.empty_like(x)


class _NeighborDistances(torch.autograd.Function):
    """d r_ij / d x_i = (x_i - y_j) / r_ij, summed over j by one weighted bag of neighbour rows."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, reference: Tensor, k: int, exclude: Tensor | None) -> Tensor:
        # A compiled graph has not checked the entries.
        distances: Tensor
        distances, rows = _search(x, reference, k, exclude, torch.compiler.is_compiling())
        ctx.save_for_backward(x, reference, distances, rows)
        return distances

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, reference, distances, rows = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            differences = x[:, None] - reference[rows]
            squares = torch.where(distances > 0, differences.square().sum(dim=2), torch.inf)
            pull: Tensor = (differences * (grad / squares.sqrt())[:, :, None]).sum(dim=1)
            return pull, None, None, None
        weights = torch.where(distances > 0, grad / distances, 0)
        return _pull(x, reference, rows, weights, distances), None, None, None
