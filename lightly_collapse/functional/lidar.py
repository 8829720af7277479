"""LiDAR: the effective rank of the linear discriminant analysis of augmented samples.

e_ij is the embedding of the j-th of q augmentations of the i-th of n samples, mu_i their mean over
j and mu the mean over everything.

Float32 embeddings are multiplied in float32 where that is known to be enough: the rounding error E
of S_w, which changes each eigenvalue of the LDA matrix by a share of at most the spectral radius
of S_w^-1 E, is measured against float64 with a few random vectors.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lightly_collapse._checks import as_double, check_choice, check_finite
from lightly_collapse.functional.gram import add_gram, gram
from lightly_collapse.functional.spectrum import rankme_of_spectrum

LidarConvention = Literal["paper", "reptrix", "stable-pretraining"]

_DELTA = 1e-4
_REPTRIX_DELTA = 1e-6
_ROWS = 2000
_PROBES = 8
_TOLERANCE = 3e-5
"""Relative error of the LDA matrix's eigenvalues up to which S_w may come from float32."""


def lidar(z: Tensor, delta: float | None = None, convention: LidarConvention = "paper") -> Tensor:
    """LiDAR: effective rank of the LDA matrix S_w^(-1/2) S_b S_w^(-1/2).

    S_b = 1/n sum_i (mu_i - mu)(mu_i - mu)^T and
    S_w = 1/(n q) sum_ij (e_ij - mu_i)(e_ij - mu_i)^T + delta I, both as the expectations the paper
    writes, without a correction for degrees of freedom. With l the eigenvalues of the LDA matrix
    the measure is exp(-sum_i p_i ln p_i), p_i = l_i / sum_j l_j + 1e-7.

    With S_w = L L^T, l are the eigenvalues of the symmetric L^-1 S_b L^-T: one Cholesky
    factorisation and one symmetric eigenvalue problem, no inverse and no root.

    stable-pretraining divides S_b by n - 1 and S_w by n (q - 1), and takes p_i = (l_i + 1e-8) /
    sum_j (l_j + 1e-8). reptrix sums S_b over the samples and S_w over the augmentations without
    dividing, takes delta = 1e-6, and then the variance ratios of a principal component analysis of
    the LDA matrix as if it were rows: the squared singular values after its columns are centred.

    Args:
        z: (n, q, d) embeddings, q augmentations of each of n samples. S_w is summed in float32
            where its measured rounding moves no eigenvalue by more than 3e-5 of itself, else in
            float64; all else is float64.
        delta: added to the diagonal of S_w, above 0; by default the convention's, 1e-4 in the
            paper.
        convention: of which package the number is.

    Returns:
        A scalar between 1 and min(d, n - 1), float32, or float64 for float64 input.

    Raises:
        ValueError: if `z` is not 3-D, has fewer than two samples or two augmentations, holds NaN
            or inf, its samples' means are all equal, `delta` is not positive, or the convention is
            none of these.

    Source: Thilak et al., "LiDAR: sensing linear probing performance in joint embedding SSL
    architectures", ICLR 2024, arXiv 2312.04000, equations 1 to 4.

    Examples:
        >>> z = torch.eye(4).repeat_interleave(2, dim=0).view(4, 2, 4)
        >>> f"{lidar(z):.3f}"
        '3.000'
    """
    check_augmented(z)
    check_choice("convention", convention, get_args(LidarConvention))
    if delta is None:
        delta = _REPTRIX_DELTA if convention == "reptrix" else _DELTA
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    if convention != "paper":
        with torch.autocast(z.device.type, enabled=False):
            value = _of_package(as_double(z), delta, convention)
        return value if z.dtype == torch.float64 else value.float()
    with torch.autocast(z.device.type, enabled=False):
        found = None
        if z.dtype != torch.float64 and not z.requires_grad:
            found = _single_precision(z, delta)
        if found is None:
            e = as_double(z)
            means = e.mean(dim=1)
            s_w = gram((e - means[:, None]).flatten(0, 1)) / (z.shape[0] * z.shape[1])
            found = means, _factor(s_w, delta)
        means, root = found
        between = means - means.mean(dim=0)
        _check_between(between)
        # H H^T is the LDA matrix; H^T H, where that is smaller, has the same eigenvalues but zeros.
        h = torch.linalg.solve_triangular(root, between.mT, upper=False)
        zeros = max(z.shape[2] - z.shape[0], 0)
        value = _effective_rank(gram(h if zeros else h.mT), z.dtype, zeros)
    return value if z.dtype == torch.float64 else value.float()


def _of_package(e: Tensor, delta: float, convention: str) -> Tensor:
    """LiDAR as reptrix or stable-pretraining compute it, in float64."""
    n, q, d = e.shape
    means = e.mean(dim=1)
    between = means - means.mean(dim=0)
    _check_between(between)
    s_b, s_w = gram(between), gram((e - means[:, None]).flatten(0, 1))
    if convention == "stable-pretraining":
        s_b, s_w = s_b / (n - 1), s_w / (n * (q - 1))
    else:
        s_w = s_w / n
    l_w, vectors = torch.linalg.eigh(s_w + delta * torch.eye(d).to(s_w))
    root = vectors / l_w.clamp(min=torch.finfo(l_w.dtype).tiny).sqrt() @ vectors.mT
    lda = root @ s_b @ root
    if convention == "stable-pretraining":
        p = torch.linalg.eigvalsh((lda + lda.mT) / 2).clamp(min=0) + 1e-8
        p = p / p.sum()
    else:
        p = torch.linalg.svdvals(lda - lda.mean(dim=0)).square()
        p = p / p.sum() + 1e-7
    return torch.special.entr(p).sum().exp()


def _single_precision(z: Tensor, delta: float) -> tuple[Tensor, Tensor] | None:
    """Means of the samples and Cholesky factor of S_w, or None where float32 is not enough."""
    n, q, d = z.shape
    generator = torch.Generator(z.device).manual_seed(0)
    vectors = torch.randn(d, _PROBES, generator=generator, dtype=torch.float64, device=z.device)
    scatter, exact = vectors.new_zeros(d, d), torch.zeros_like(vectors)
    samples = max(1, _ROWS // q)
    # One buffer for all chunks: fresh memory for each costs more than the sums.
    buffer = vectors.new_empty(min(samples, n), q, d)
    upper, means = torch.empty(d, d, device=z.device), []
    for chunk in torch.split(z, samples):
        e = buffer[: len(chunk)].copy_(chunk)
        means.append(e.mean(dim=1))
        e = e.sub_(means[-1][:, None]).flatten(0, 1)
        add_gram(upper.zero_(), e.float())
        scatter += upper
        exact += e.mT @ (e @ vectors)
    s_w = (scatter.triu() + scatter.triu(1).mT) / (n * q)
    root, info = torch.linalg.cholesky_ex(s_w + delta * torch.eye(d).to(s_w))
    if info:
        return None
    # E ||M v||^2 = ||M||_F^2 for a standard normal v, and the Frobenius norm bounds the radius.
    error = torch.cholesky_solve(s_w @ vectors - exact / (n * q), root).norm() / _PROBES**0.5
    return (torch.cat(means), root) if error <= _TOLERANCE else None


def _factor(s_w: Tensor, delta: float) -> Tensor:
    return torch.linalg.cholesky(s_w + delta * torch.eye(s_w.shape[0]).to(s_w))


def lidar_of_scatter(
    s_b: Tensor, s_w: Tensor, delta: float = _DELTA, dtype: torch.dtype = torch.float64
) -> Tensor:
    """`lidar` from the two covariances; differentiable in both.

    Args:
        s_b: (d, d) between-sample covariance.
        s_w: (d, d) within-sample covariance, without `delta`.
        delta: added to the diagonal of S_w.
        dtype: of the embeddings; for other than float64 the eigenvalues are taken in float32,
            whose rounding is that of the 1e-7 in the definition.

    Returns:
        A scalar.

    Raises:
        ValueError: if the samples' means are all equal (S_b is zero).

    Examples:
        >>> f"{lidar_of_scatter(torch.eye(3), torch.eye(3)):.3f}"
        '3.000'
    """
    _check_between(s_b.diagonal())
    root = _factor(s_w, delta)
    half = torch.linalg.solve_triangular(root, s_b, upper=False)
    return _effective_rank(torch.linalg.solve_triangular(root, half.mT, upper=False), dtype)


def _check_between(between: Tensor) -> None:
    if not between.any():
        raise ValueError("z must hold samples whose means differ: S_b is zero and has no rank")


def _effective_rank(lda: Tensor, dtype: torch.dtype, zeros: int = 0) -> Tensor:
    if dtype != torch.float64:
        lda = (lda / lda.diagonal().sum()).float()
    eigenvalues = torch.linalg.eigvalsh(lda).clamp(min=0)
    return rankme_of_spectrum(torch.nn.functional.pad(eigenvalues, (zeros, 0)))


def check_augmented(z: Tensor, samples: int = 2, finite: bool = True) -> None:
    """Raise a ValueError unless `z` is (samples, augmentations, dimensions), large enough.

    Args:
        z: the embeddings.
        samples: the least number of samples; of augmentations it is two, of dimensions one.
        finite: whether NaN and inf are refused as well.
    """
    if z.ndim != 3 or z.shape[0] < samples or z.shape[1] < 2 or z.shape[2] < 1:
        raise ValueError(
            f"z must be 3-D (samples, augmentations, dimensions) with at least {samples} sample(s) "
            f"and two augmentations, got shape {tuple(z.shape)}"
        )
    if finite:
        check_finite(z, "z")
