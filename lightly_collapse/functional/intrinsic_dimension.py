"""Local intrinsic dimensionality (LID): in how many directions a sample's neighbours lie.

r_1 <= ... <= r_k are the distances of a sample to its k nearest neighbours.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from lightly_collapse._checks import as_float, check_choice, check_rows
from lightly_collapse.functional.neighbors import neighbor_distances

Estimator = Literal["mom", "mle"]
"""Method of moments, or maximum likelihood."""

LidConvention = Literal["paper", "scikit-dimension"]
"""Mean of the k - 1 nearer distances or of all k; sum of logarithms divided by k or by k - 1."""

DEFAULT_LID_K = 20
"""Number of neighbours of a measured LID; LDReg's penalty takes 64, as its paper does."""


def lid_mom(
    x: Tensor,
    reference: Tensor | None = None,
    k: int = DEFAULT_LID_K,
    convention: LidConvention = "paper",
) -> Tensor:
    """Local intrinsic dimensionality by the method of moments.

    LID = m / (r_k - m), where m is the mean of the k - 1 nearer distances r_1 .. r_{k-1}, as in
    LDReg's official code. scikit-dimension's `MOM` takes the mean of all k instead; its value at
    the same k is (k LID + 1) / (k - 1).

    Args:
        x: (n, d) samples; half types are computed in float32.
        reference: (m, d) points among which the neighbours are sought, none left out. By default
            they are sought in `x`, the sample's own row left out.
        k: number of neighbours, at least 2.
        convention: of which package the numbers are.

    Returns:
        (n,) LID, float32 or float64, with a gradient with respect to `x` as samples; the
        neighbours are constants. Where all distances are equal the LID is infinite, where all but
        the last are zero it is zero: those are returned as 1 / eps and eps of the dtype.

    Raises:
        ValueError: if an input is not 2-D, is empty or holds NaN or inf, the widths differ, or `k`
            is below 2 or above the number of candidate neighbours, or the convention is none of
            these.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, section 5; Amsaleg et al.,
    "Extreme-value-theoretic estimation of local intrinsic dimensionality", 2018, section 4.2.

    Examples:
        >>> plane = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> f"{geometric_mean(lid_mom(plane)):.1f}"
        '2.0'
    """
    check_choice("convention", convention, get_args(LidConvention))
    lid = lid_mom_from_distances(_distances(x, reference, k))
    return lid if convention == "paper" else (k * lid + 1) / (k - 1)


def lid_mle(
    x: Tensor,
    reference: Tensor | None = None,
    k: int = DEFAULT_LID_K,
    convention: LidConvention = "paper",
) -> Tensor:
    """Local intrinsic dimensionality by maximum likelihood.

    LID = -(1/k sum_{i=1..k} ln(r_i / r_k))^-1: the sum runs over all k (its last term is zero) and
    is divided by k. scikit-dimension's `MLE` divides by k - 1; its value at the same k is
    (k - 1) / k LID, and it combines the samples by the harmonic mean.

    Args:
        x: (n, d) samples; half types are computed in float32.
        reference: (m, d) points among which the neighbours are sought, none left out. By default
            they are sought in `x`, the sample's own row left out.
        k: number of neighbours, at least 2.
        convention: of which package the numbers are.

    Returns:
        (n,) LID, float32 or float64, with a gradient with respect to `x` as samples; the
        neighbours are constants. Ratios r_i / r_k are held above eps of the dtype and the mean of
        their logarithms below -eps, so that neighbours at the same place, or all at one distance,
        give finite values; the latter 1 / eps.

    Raises:
        ValueError: if an input is not 2-D, is empty or holds NaN or inf, the widths differ, or `k`
            is below 2 or above the number of candidate neighbours, or the convention is none of
            these.

    Source: Amsaleg et al., "Estimating local intrinsic dimensionality", KDD 2015, section 4.1.

    Examples:
        >>> plane = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> f"{geometric_mean(lid_mle(plane)):.1f}"
        '2.1'
    """
    check_choice("convention", convention, get_args(LidConvention))
    lid = lid_mle_from_distances(_distances(x, reference, k))
    return lid if convention == "paper" else (k - 1) / k * lid


def lid_mom_from_distances(r: Tensor) -> Tensor:
    """`lid_mom` from (n, k) neighbour distances in ascending order.

    Args:
        r: (n, k) distances, k at least 2.

    Returns:
        (n,) LID.

    Raises:
        ValueError: if `r` is not 2-D with at least two columns.

    Examples:
        >>> lid_mom_from_distances(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([1.])
    """
    r = _check_distances(r)
    # m / w without its gap to 1: LID = m / (w - m) keeps its precision where m is close to w.
    w = r[:, -1]
    m = r[:, :-1].mean(dim=1)
    eps = torch.finfo(r.dtype).eps
    positive = w > 0
    w = torch.where(positive, w, 1)
    m = torch.where(positive, m, 0)
    gap = (w - m) / w
    return (m / w).clamp(min=eps) / gap.clamp(min=eps)


def lid_mle_from_distances(r: Tensor) -> Tensor:
    """`lid_mle` from (n, k) neighbour distances in ascending order.

    Args:
        r: (n, k) distances, k at least 2.

    Returns:
        (n,) LID.

    Raises:
        ValueError: if `r` is not 2-D with at least two columns.

    Examples:
        >>> lid_mle_from_distances(torch.tensor([[1.0, torch.e]]))
        tensor([2.])
    """
    r = _check_distances(r)
    eps = torch.finfo(r.dtype).eps
    w = r[:, -1:]
    ratio = torch.where(w > 0, r / torch.where(w > 0, w, 1), 0)
    return -1 / ratio.clamp(min=eps).log().mean(dim=1).clamp(max=-eps)


def geometric_mean(lid: Tensor) -> Tensor:
    """Geometric mean of local intrinsic dimensionalities (mLID): exp(mean(ln LID)).

    Args:
        lid: LID values of any shape.

    Returns:
        A scalar.

    Raises:
        ValueError: if `lid` is empty or holds a value that is not positive and finite.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, theorem 2 (the Fréchet mean under
    the Fisher-Rao metric).

    Examples:
        >>> geometric_mean(torch.tensor([1.0, 4.0]))
        tensor(2.)
    """
    return _check_lid(lid, "lid").log().mean().exp()


def mlid_corrected(mlid: float, k: int) -> float:
    """The mLID of the method of moments, without the bias of few neighbours.

    Where distances within r_k are distributed as in a ball of dimension d, the k - 1 nearer ones
    over r_k are independent with mean d / (d + 1) and variance d / ((d + 1)^2 (d + 2)), and the
    mean of ln LID exceeds ln d by (d^2 - 1) / (2 d (d + 2) (k - 1)) to first order in 1 / k: 2 %
    at d = 10 and k = 20. That the ball is not small, which takes more rows, is not corrected. At
    d = 1 the bias is 0, and below, where its expansion fails as d falls, the value stays as it is.

    Args:
        mlid: the geometric mean of `lid_mom`, above 0.
        k: its number of neighbours.

    Returns:
        The corrected value.

    Examples:
        >>> f"{mlid_corrected(10.0, k=20):.2f}"
        '9.79'
    """
    d = mlid
    if d <= 1:
        return d
    for _ in range(20):  # d in the bias is the corrected one: a contraction
        d = mlid * math.exp(-(d * d - 1) / (2 * d * (d + 2) * (k - 1)))
    return d


def fisher_rao_distance(lid0: Tensor, lid1: Tensor) -> Tensor:
    """Fisher-Rao distance between two local distance distributions: |ln(LID_0 / LID_1)|.

    Args:
        lid0: LID values.
        lid1: LID values of a shape that broadcasts with that of `lid0`.

    Returns:
        The distances.

    Raises:
        ValueError: if either is empty or holds a value that is not positive and finite.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, definition 3 and lemma 1.

    Examples:
        >>> fisher_rao_distance(torch.tensor(1.0), torch.tensor(2.0))
        tensor(0.6931)
    """
    return (_check_lid(lid0, "lid0").log() - _check_lid(lid1, "lid1").log()).abs()


def _distances(x: Tensor, reference: Tensor | None, k: int) -> Tensor:
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}: a LID compares two distances")
    x = check_rows(x, "x")
    if reference is not None:
        return neighbor_distances(x, check_rows(reference, "reference"), k)
    return neighbor_distances(x, x.detach(), k, torch.arange(x.shape[0], device=x.device))


def _check_distances(r: Tensor) -> Tensor:
    if r.ndim != 2 or r.shape[1] < 2:
        raise ValueError(
            f"r must be (samples, neighbours) with two neighbours or more, got {tuple(r.shape)}"
        )
    return as_float(r)


def _check_lid(lid: Tensor, name: str) -> Tensor:
    lid = as_float(lid)
    if lid.numel() == 0 or not (lid.isfinite() & (lid > 0)).all():
        raise ValueError(f"{name} must hold positive, finite values, at least one")
    return lid
