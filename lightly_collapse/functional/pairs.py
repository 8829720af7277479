"""Two representations of the same samples compared: row i of `x` and of `y` is one sample.

CKA, neighbour overlap and information imbalance do not need equal widths; the modality gap does.
"""

import torch
from torch import Tensor

from lightly_collapse._checks import as_double, check_rows, on_sphere
from lightly_collapse.functional.neighbors import nearest_neighbors

_CHUNK_ENTRIES = 2**22


def cka(x: Tensor, y: Tensor, debiased: bool = True) -> Tensor:
    """Linear centred kernel alignment of two representations.

    HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), with HSIC(a, b) = ||S_ab||_F^2 and S_ab the
    cross-scatter of the centred rows. That is biased towards 1 with few rows: two independent
    representations of width D have about D / (n + D). `debiased` takes the unbiased estimate of
    HSIC instead, which is zero on average for independent rows and may be negative.

    Args:
        x: (n, d) rows; half types are computed in float32.
        y: (n, e) rows of the same samples.
        debiased: take the unbiased estimate, which needs four rows.

    Returns:
        A scalar, at most 1, float32 or float64; nan where a representation has no variance or, with
        few rows, its unbiased HSIC with itself is not positive. It has a gradient.

    Raises:
        ValueError: if an input is not 2-D, holds NaN or inf, has too few rows, or they differ in
            number.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019,
    arXiv 1905.00414; Song et al., "Feature selection via dependence maximization", JMLR 13, 2012,
    equation 4 (the unbiased estimate); Nguyen et al., ICLR 2021, arXiv 2010.15327.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(100, 50, generator=g), torch.randn(100, 50, generator=g)
        >>> f"{cka(x, 3 * x):.2f} {cka(x, y, debiased=False):.2f} {cka(x, y).abs():.2f}"
        '1.00 0.34 0.00'
    """
    x, y, dtype = _paired(x, y, 4 if debiased else 2)
    with torch.autocast(x.device.type, enabled=False):
        z = torch.cat([x - x.mean(dim=0), y - y.mean(dim=0)], dim=1)
        norms = squared_norms(z, x.shape[1])
        n, traces, squares = x.shape[0], norms.sum(dim=1), norms @ norms.T
        if n < z.shape[1]:  # the Gram matrices of the rows are smaller than those of the columns
            grams = [part @ part.T for part in torch.split(z, [x.shape[1], y.shape[1]], dim=1)]
            products = torch.stack([(a * b).sum() for a in grams for b in grams]).view(2, 2)
        else:
            products = block_norms(z.T @ z, x.shape[1])
        return cka_of_moments(n, products, traces, squares, debiased).to(dtype)


def squared_norms(z: Tensor, width: int) -> Tensor:
    """(2, n) squared lengths of the first `width` columns of every row and of the others."""
    parts = torch.split(z, [width, z.shape[1] - width], dim=1)
    return torch.stack([part.square().sum(dim=1) for part in parts])


def block_norms(scatter: Tensor, width: int) -> Tensor:
    """(2, 2) squared Frobenius norms of the blocks of a matrix, the first of `width` columns."""
    cuts = [width, scatter.shape[1] - width]
    return torch.stack(
        [b.square().sum() for a in torch.split(scatter, cuts) for b in torch.split(a, cuts, dim=1)]
    ).view(2, 2)


def cka_of_moments(
    n: int, products: Tensor, traces: Tensor, squares: Tensor, debiased: bool = True
) -> Tensor:
    """`cka` from moments of the centred rows, which can be summed over parts of them.

    Args:
        n: number of rows.
        products: (2, 2) ||S_ab||_F^2 for a and b among x and y.
        traces: (2,) sums of the squared lengths of the rows.
        squares: (2, 2) sums over the rows of the products of squared lengths.
        debiased: as for `cka`.

    Returns:
        A scalar.
    """
    hsic = products
    if debiased:
        correction = torch.outer(traces, traces) / ((n - 1) * (n - 2))
        hsic = products - n / (n - 2) * squares + correction
    own = hsic[0, 0].clamp(min=0) * hsic[1, 1].clamp(min=0)
    return torch.where(own > 0, hsic[0, 1] / own.sqrt(), torch.nan)


def neighbor_overlap(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """Share of the k nearest neighbours of a sample that are the same in both representations.

    Args:
        x: (n, d) rows.
        y: (n, e) rows of the same samples.
        k: number of neighbours.

    Returns:
        A scalar between 0 and 1, the mean over the samples; k / (n - 1) for independent rows.

    Raises:
        ValueError: if an input is not 2-D or holds NaN or inf, the numbers of rows differ, or `k`
            is below 1 or above n - 1.

    Source: Doimo et al., "Hierarchical nucleation in deep neural networks", NeurIPS 2020,
    arXiv 2007.03506, equation 1; DADApy's `return_data_overlap`.

    Examples:
        >>> x = torch.arange(6.0)[:, None].square()
        >>> neighbor_overlap(x, 2 * x, k=2)
        tensor(1.)
    """
    x, y, dtype = _paired(x, y, 2)
    own = torch.arange(x.shape[0], device=x.device)
    near = [nearest_neighbors(z, z, k, exclude=own)[1].sort(dim=1).values for z in (x, y)]
    shared = torch.searchsorted(near[1], near[0]).clamp(max=k - 1)
    return (near[1].gather(1, shared) == near[0]).double().mean().to(dtype)


def information_imbalance(x: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Information imbalance: how well distances in one representation predict those in the other.

    Delta(x -> y) = 2 / (n k) times the sum, over the samples and over the k nearest neighbours of
    each in x, of the rank of that neighbour by distance in y. 2 / n where the nearest
    neighbours in x are those in y; near 1 where x says nothing on y.

    Args:
        x: (n, d) rows.
        y: (n, e) rows of the same samples.
        k: number of neighbours.

    Returns:
        (2,) Delta(x -> y) and Delta(y -> x).

    Raises:
        ValueError: if an input is not 2-D or holds NaN or inf, the numbers of rows differ, or `k`
            is below 1 or above n - 1.

    Source: Glielmo et al., "Ranking the information content of distance measures", PNAS Nexus 1,
    2022, arXiv 2104.15079, equation 1; DADApy's `return_information_imbalace`.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> plane = torch.randn(500, 2, generator=g)
        >>> forth, back = information_imbalance(plane, plane[:, :1])
        >>> bool(forth < 0.1), bool(back > 0.2)
        (True, True)
    """
    x, y, dtype = _paired(x, y, 2)
    return torch.stack([_imbalance(x, y, k), _imbalance(y, x, k)]).to(dtype)


def _imbalance(x: Tensor, y: Tensor, k: int) -> Tensor:
    n = x.shape[0]
    own = torch.arange(n, device=x.device)
    _, near = nearest_neighbors(x, x, k, exclude=own)
    total = x.new_zeros(())
    for rows in torch.split(own, max(1, _CHUNK_ENTRIES // n)):
        every = torch.cdist(y[rows], y, compute_mode="donot_use_mm_for_euclid_dist")
        every.scatter_(1, rows[:, None], torch.inf)
        ordered = every.sort(dim=1).values
        # A neighbour's rank is one more than the number of rows that are nearer.
        nearer = torch.searchsorted(ordered, every.gather(1, near[rows]).contiguous())
        total = total + (nearer + 1).sum()
    return 2 * total / (n * n * k)


def modality_gap(x: Tensor, y: Tensor) -> Tensor:
    """Distance of the centres of two representations on the unit sphere.

    ||mean(x_i / |x_i|) - mean(y_i / |y_i|)||, such as of images and their captions; 0 where the
    clouds have one centre, at most 2. The rows need not be pairs.

    Args:
        x: (n, d) rows; half types are computed in float32.
        y: (m, d) rows.

    Returns:
        A scalar. It has a gradient.

    Raises:
        ValueError: if an input is not 2-D, is empty, holds NaN, inf or a zero row, or the widths
            differ.

    Source: Liang et al., "Mind the gap: understanding the modality gap in multi-modal contrastive
    representation learning", NeurIPS 2022, arXiv 2203.02053, section 2.

    Examples:
        >>> modality_gap(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
        tensor(2.)
    """
    if x.ndim == y.ndim == 2 and x.shape[1] != y.shape[1]:
        raise ValueError(f"y must have the width of x, {x.shape[1]}, got {y.shape[1]}")
    with torch.autocast(x.device.type, enabled=False):
        return (on_sphere(x, "x").mean(dim=0) - on_sphere(y, "y").mean(dim=0)).norm()


def _paired(x: Tensor, y: Tensor, minimum: int) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both in float64 where there is one, and the dtype of the result."""
    x, y = check_rows(x, "x", minimum), check_rows(y, "y", minimum)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"y must have a row for each of x, {x.shape[0]}, got {y.shape[0]}: they are pairs"
        )
    return as_double(x), as_double(y), torch.promote_types(x.dtype, y.dtype)
