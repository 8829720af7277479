"""LiDAR: the effective rank of the linear discriminant analysis of augmented samples.

e_ij is the embedding of the j-th of q augmentations of the i-th of n samples, mu_i their mean over
j and mu the mean over everything.
"""

import torch
from torch import Tensor

from lightly_collapse.functional._check import as_double, check_finite
from lightly_collapse.functional._gram import add_gram, gram
from lightly_collapse.functional.spectrum import rankme_of_spectrum

_DELTA = 1e-4
_ROWS = 500


def lidar(z: Tensor, delta: float = _DELTA) -> Tensor:
    """LiDAR: effective rank of the LDA matrix S_w^(-1/2) S_b S_w^(-1/2).

    S_b = 1/n sum_i (mu_i - mu)(mu_i - mu)^T and
    S_w = 1/(n q) sum_ij (e_ij - mu_i)(e_ij - mu_i)^T + delta I, both as the expectations the paper
    writes, without a correction for degrees of freedom. With l the eigenvalues of the LDA matrix
    the measure is exp(-sum_i p_i ln p_i), p_i = l_i / sum_j l_j + 1e-7.

    With S_w = L L^T, l are the eigenvalues of the symmetric L^-1 S_b L^-T: one Cholesky
    factorisation and one symmetric eigenvalue problem, no inverse and no root.

    Args:
        z: (n, q, d) embeddings, q augmentations of each of n samples; computed in float64.
        delta: added to the diagonal of S_w, above 0.

    Returns:
        A scalar between 1 and min(d, n - 1), float32, or float64 for float64 input.

    Raises:
        ValueError: if `z` is not 3-D, has fewer than two samples or two augmentations, holds NaN
            or inf, its samples' means are all equal, or `delta` is not positive.

    Source: Thilak et al., "LiDAR: sensing linear probing performance in joint embedding SSL
    architectures", ICLR 2024, arXiv 2312.04000, equations 1 to 4.

    Examples:
        >>> z = torch.eye(4).repeat_interleave(2, dim=0).view(4, 2, 4)
        >>> f"{lidar(z):.3f}"
        '3.000'
    """
    check_augmented(z)
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    with torch.autocast(z.device.type, enabled=False):
        means, within = _within_scatter(z)
        s_w = within / (z.shape[0] * z.shape[1])
        between = means - means.mean(dim=0)
        value = lidar_of_scatter(gram(between) / means.shape[0], s_w, delta, z.dtype)
    return value if z.dtype == torch.float64 else value.float()


def _within_scatter(z: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the samples in float64, and the scatter of the embeddings about them."""
    if z.requires_grad:
        e = as_double(z)
        means = e.mean(dim=1)
        return means, gram((e - means[:, None]).flatten(0, 1))
    d = z.shape[2]
    scatter = z.new_zeros(d, d, dtype=torch.float64)
    found = []
    # In chunks that stay in the cache: fresh memory for all of them costs more than the sums.
    for chunk in torch.split(z, max(1, _ROWS // z.shape[1])):
        e = as_double(chunk)
        means = e.mean(dim=1)
        add_gram(scatter, (e - means[:, None]).flatten(0, 1))
        found.append(means)
    return torch.cat(found), scatter.triu() + scatter.triu(1).mT


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
    if not s_b.diagonal().any():
        raise ValueError("z must hold samples whose means differ: S_b is zero and has no rank")
    root = torch.linalg.cholesky(s_w + delta * torch.eye(s_w.shape[0]).to(s_w))
    half = torch.linalg.solve_triangular(root, s_b, upper=False)
    lda = torch.linalg.solve_triangular(root, half.mT, upper=False)
    if dtype != torch.float64:
        lda = (lda / lda.diagonal().sum()).float()
    return rankme_of_spectrum(torch.linalg.eigvalsh(lda).clamp(min=0))


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
