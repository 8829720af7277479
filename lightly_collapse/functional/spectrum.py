"""Measures of a spectrum: how many dimensions carry the data, and how evenly.

Z is an (n, d) matrix of n samples, s its singular values in descending order, and l = s^2 the
eigenvalues of Z^T Z (of (n - 1) times the covariance, where Z is centred). Every measure that
takes s is invariant to its scale.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lightly_collapse._checks import as_float, check_choice, check_rows
from lightly_collapse.functional.gram import tall_singular_values

DEFAULT_RTOL = 1e-2
"""A dimension counts as collapsed below this times the largest centred singular value."""

_RANKME_EPSILON = 1e-7
_REPTRIX_MOST = 2048  # eigenvalues that reptrix computes
_REPTRIX_RANGE = (10, 100)  # of those it fits

RankMeConvention = Literal["paper", "reptrix", "stable-pretraining"]
AlphaConvention = Literal["paper", "reptrix"]


def singular_values(z: Tensor, center: bool = False) -> Tensor:
    """Singular values of a matrix of samples, in descending order.

    Args:
        z: (n, d) samples in any floating dtype; half types are computed in float32.
        center: subtract the mean sample first.

    Returns:
        (min(n, d),) singular values, float32 or float64.

    Raises:
        ValueError: if `z` is not 2-D, is empty, or holds NaN or inf.

    Examples:
        >>> singular_values(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor([4., 3.])
    """
    z = check_rows(z, "z")
    with torch.autocast(z.device.type, enabled=False):
        s: Tensor = torch.linalg.svdvals(z - z.mean(dim=0) if center else z)
    return s


def effective_rank(s: Tensor) -> Tensor:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j; between 1 and the number of singular values.

    Args:
        s: (r,) singular values.

    Returns:
        A scalar.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007, definition 1.

    Examples:
        >>> f"{effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0])):.3f}"
        '3.000'
    """
    return _exponential_of_entropy(_proportions(s))


def rankme(z: Tensor, convention: RankMeConvention = "paper") -> Tensor:
    """RankMe: the effective rank of the uncentred embedding matrix.

    exp(-sum_i p_i ln p_i) with p_i = s_i / sum_j s_j + 1e-7 and s the singular values of z itself.
    This is the paper's definition. stable-pretraining adds 1e-5 instead. reptrix takes the
    variance ratios of a principal component analysis, which are squared and of centred rows:
    p_i = l_i / sum_j l_j + 1e-7 over the first 2048.

    Args:
        z: (n, d) embeddings.
        convention: of which package the number is.

    Returns:
        A scalar.

    Raises:
        ValueError: if `z` is not 2-D, is empty, all zero, or holds NaN or inf, or the convention is
            none of these.

    Source: Garrido et al., "RankMe", ICML 2023, arXiv 2210.02885, equation 1.

    Examples:
        >>> f"{rankme(torch.eye(8)):.3f}"
        '8.000'
    """
    check_choice("convention", convention, get_args(RankMeConvention))
    if convention == "reptrix":
        eigenvalues = _relative_eigenvalues(singular_values(z, center=True))[:_REPTRIX_MOST]
        return _exponential_of_entropy(eigenvalues / eigenvalues.sum() + _RANKME_EPSILON)
    z = check_rows(z, "z")
    if convention == "stable-pretraining":
        return _exponential_of_entropy(_proportions(singular_values(z)) + 1e-5)
    tall = z.shape[0] >= 2 * z.shape[1] and z.dtype == torch.float32 and z.device.type != "mps"
    if tall and not z.requires_grad and z.any():
        with torch.autocast(z.device.type, enabled=False):
            return rankme_of_spectrum(tall_singular_values(z))
    return rankme_of_spectrum(singular_values(z))


def rankme_of_spectrum(s: Tensor) -> Tensor:
    """RankMe from the singular values of the uncentred embeddings; see `rankme`.

    Args:
        s: (r,) singular values.

    Returns:
        A scalar.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Examples:
        >>> f"{rankme_of_spectrum(torch.ones(8)):.3f}"
        '8.000'
    """
    return _exponential_of_entropy(_proportions(s) + _RANKME_EPSILON)


def stable_rank(s: Tensor) -> Tensor:
    """Stable rank ||Z||_F^2 / ||Z||_2^2 = sum_i s_i^2 / s_1^2.

    Args:
        s: (r,) singular values.

    Returns:
        A scalar between 1 and the rank.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Source: Rudelson and Vershynin, "Sampling from large matrices", J. ACM 54(4), 2007.

    Examples:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    return _relative_eigenvalues(s).sum()


def participation_ratio(s: Tensor) -> Tensor:
    """Participation ratio (sum_i l_i)^2 / sum_i l_i^2 with l_i = s_i^2.

    Args:
        s: (r,) singular values, of centred data for the usual meaning.

    Returns:
        A scalar between 1 and the rank.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Source: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Examples:
        >>> participation_ratio(torch.tensor([1.0, 1.0, 0.0]))
        tensor(2.)
    """
    eigenvalues = _relative_eigenvalues(s)
    return eigenvalues.sum().square() / eigenvalues.square().sum()


def nesum(s: Tensor) -> Tensor:
    """Normalised eigenvalue sum: sum_i l_i / l_1 with l_i = s_i^2 the covariance's eigenvalues.

    The same function of s as `stable_rank`; it differs in being defined on centred data.

    Args:
        s: (r,) singular values of the centred data.

    Returns:
        A scalar between 1 and the rank.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Source: He and Ozay, "Exploring the gap between collapsed and whitened features in
    self-supervised learning", ICML 2022.

    Examples:
        >>> nesum(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    return _relative_eigenvalues(s).sum()


def condition_number(s: Tensor) -> Tensor:
    """Condition number s_max / s_min; inf where the smallest singular value is zero.

    Args:
        s: (r,) singular values.

    Returns:
        A scalar of at least 1.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero.

    Examples:
        >>> condition_number(torch.tensor([4.0, 2.0]))
        tensor(2.)
    """
    s = _check_spectrum(s)
    return s.max() / s.min()


def collapsed_dimensions(s: Tensor, rtol: float = DEFAULT_RTOL) -> Tensor:
    """Number of dimensions whose singular value is below `rtol` times the largest.

    Counted are the r = min(n, d) singular values given: take more samples than dimensions.

    Args:
        s: (r,) singular values.
        rtol: relative tolerance, between 0 and 1.

    Returns:
        An int64 scalar.

    Raises:
        ValueError: if `s` is not a non-empty vector of finite, non-negative values, or all zero,
            or `rtol` is outside [0, 1].

    Source: the count that Jing et al., "Understanding dimensional collapse in contrastive
    self-supervised learning", ICLR 2022, figure 2, reads off the spectrum.

    Examples:
        >>> collapsed_dimensions(torch.tensor([1.0, 0.5, 1e-4]))
        tensor(1)
    """
    if not 0 <= rtol <= 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol}")
    s = _check_spectrum(s)
    return (s < rtol * s.max()).sum()


def alpha_req(s: Tensor, convention: AlphaConvention = "paper") -> Tensor:
    """alpha-ReQ: the exponent of the power law l_j ~ j^-alpha, by least squares of logarithms.

    l_j = s_j^2 in descending order, j = 1 .. r; eigenvalues below the rounding error of the
    largest (s_j <= r * eps * s_1) say nothing about the decay and are left out. reptrix fits the
    eigenvalues j = 11 .. 100 alone, each with the weight 1 / j.

    Args:
        s: (r,) singular values of the centred features.
        convention: of which package the number is.

    Returns:
        A scalar; 0 for a flat spectrum, larger for a faster decay.

    Raises:
        ValueError: if `s` is not a vector of finite, non-negative values, or has fewer than two
            that are distinguishable from zero, or fewer than reptrix fits, or the convention is
            none of these.

    Source: Agrawal et al., "alpha-ReQ: assessing representation quality in self-supervised
    learning by measuring eigenspectrum decay", NeurIPS 2022.

    Examples:
        >>> j = torch.arange(1, 101, dtype=torch.float64)
        >>> round(float(alpha_req(j.pow(-0.75))), 6)
        1.5
    """
    check_choice("convention", convention, get_args(AlphaConvention))
    # Relative to the largest the logarithms stay of the order of their differences: those of 3e38
    # are near 89, where the rounding of float32 is 4e-6.
    s = _relative(s).sort(descending=True).values
    s = s[s > s.numel() * torch.finfo(s.dtype).eps]
    if s.numel() < 2:
        raise ValueError("s must hold at least two singular values that are not zero, got one")
    index = torch.arange(1, s.numel() + 1, dtype=s.dtype, device=s.device)
    weight = torch.ones_like(index)
    if convention == "reptrix":
        first, last = _REPTRIX_RANGE
        if s.numel() < last:
            raise ValueError(f"s must hold {last} singular values for reptrix, got {s.numel()}")
        index, s = index[first:last], s[first:last]
        weight = 1 / index
    x = index.log()
    x = x - (weight @ x) / weight.sum()
    return -((weight * x) @ (2 * s.log())) / (weight @ x.square())


def normalized_eigenvalues(m: Tensor) -> Tensor:
    """Eigenvalues of M^T M, each divided by the largest, in descending order.

    With M a weight matrix, or centred features, this is the spectrum in which collapse of weights
    and hidden features is read; usually drawn on a logarithmic axis.

    Args:
        m: (rows, columns) matrix, such as `weight_matrix(conv.weight)`, or centred features.

    Returns:
        (min(rows, columns),) eigenvalues between 0 and 1; the remaining ones are zero.

    Raises:
        ValueError: if `m` is not 2-D, is empty, all zero, or holds NaN or inf.

    Source: He, Du and Ma, "Preventing dimensional collapse in self-supervised learning via
    orthogonality regularization", NeurIPS 2024, arXiv 2411.00392.

    Examples:
        >>> normalized_eigenvalues(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([1.0000, 0.2500])
    """
    return _relative_eigenvalues(singular_values(check_rows(m, "m")))


def _exponential_of_entropy(p: Tensor) -> Tensor:
    # At zero, -p ln p is zero but its slope infinite; as a constant it gives no NaN gradient.
    entropy: Tensor = torch.special.entr(torch.where(p > 0, p, 1)).sum()
    return entropy.exp()


def _relative(s: Tensor) -> Tensor:
    # In units of the largest neither a sum nor a square under- or overflows.
    s = _check_spectrum(s)
    return s / s.max()


def _proportions(s: Tensor) -> Tensor:
    relative = _relative(s)
    return relative / relative.sum()


def _relative_eigenvalues(s: Tensor) -> Tensor:
    return _relative(s).square()


def _check_spectrum(s: Tensor) -> Tensor:
    if s.ndim != 1 or s.numel() == 0:
        raise ValueError(
            f"s must be a non-empty vector of singular values, got shape {tuple(s.shape)}"
        )
    s = as_float(s)
    if not (s.isfinite() & (s >= 0)).all():
        raise ValueError("s must hold finite, non-negative singular values")
    if not (s > 0).any():
        raise ValueError("s must not be all zero: a zero matrix has no rank to measure")
    return s
