"""Alignment and uniformity on the unit sphere: are views together, are samples spread out.

Every function divides the rows it gets by their length first.
"""

import math

import torch
from torch import Tensor

from lightly_collapse._checks import on_sphere

_CHUNK_ENTRIES = 2**22


def alignment(z0: Tensor, z1: Tensor) -> Tensor:
    """Alignment E ||z - z'||^2 of two views of the same samples, on the unit sphere.

    Args:
        z0: (n, d) embeddings of one view; half types are computed in float32.
        z1: (n, d) embeddings of the other.

    Returns:
        A scalar between 0 and 4; lower is better. It has a gradient.

    Raises:
        ValueError: if an input is not 2-D, is empty, holds NaN, inf or a zero row, or the shapes
            differ.

    Source: Wang and Isola, "Understanding contrastive representation learning through alignment
    and uniformity on the hypersphere", ICML 2020, equation 1 with alpha = 2.

    Examples:
        >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor(2.)
    """
    if z0.shape != z1.shape:
        raise ValueError(f"z1 must have the shape of z0, {tuple(z0.shape)}, got {tuple(z1.shape)}")
    with torch.autocast(z0.device.type, enabled=False):
        return (on_sphere(z0, "z0") - on_sphere(z1, "z1")).square().sum(dim=1).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """Uniformity log E exp(-t ||z - w||^2) over all pairs of different samples on the unit sphere.

    Pairs are taken in chunks, so that memory stays bounded by some tens of megabytes.

    Args:
        z: (n, d) embeddings, at least two; half types are computed in float32.
        t: inverse temperature, above 0.

    Returns:
        A scalar between -4 t and 0; lower is better. It has a gradient.

    Raises:
        ValueError: if `z` is not 2-D, has fewer than two rows, holds NaN, inf or a zero row, or
            `t` is not positive.

    Source: Wang and Isola, ICML 2020, equation 2.

    Examples:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    if z.ndim == 2 and z.shape[0] < 2:
        raise ValueError(f"z must have two rows or more to make a pair, got {z.shape[0]}")
    with torch.autocast(z.device.type, enabled=False):
        z = on_sphere(z, "z")
        n = z.shape[0]
        rows = max(1, _CHUNK_ENTRIES // n)
        logs = []
        for start in range(0, n - 1, rows):
            # Each pair once: a chunk against itself above the diagonal and against what follows.
            chunk = z[start : start + rows]
            exponent = 2 * t * (chunk @ z[start:].mT - 1)
            earlier = torch.ones_like(exponent, dtype=torch.bool).tril()
            logs.append(exponent.masked_fill(earlier, -torch.inf).flatten().logsumexp(dim=0))
        return torch.stack(logs).logsumexp(dim=0) - math.log(n * (n - 1) / 2)


def wasserstein_uniformity(z: Tensor) -> Tensor:
    """Wasserstein uniformity: the distance of the embeddings from a uniform sphere.

    The quadratic Wasserstein distance between N(mu, S), with the mean and covariance (of divisor
    n) of the normalised rows, and N(0, I / d), which the uniform distribution on the sphere
    approaches: sqrt(|mu|^2 + 1 + tr S - 2 / sqrt(d) tr S^(1/2)).

    Args:
        z: (n, d) embeddings; half types are computed in float32.

    Returns:
        A scalar between 0 and sqrt(2); lower is better. It has a gradient.

    Raises:
        ValueError: if `z` is not 2-D, is empty, or holds NaN, inf or a zero row.

    Source: Fang et al., "Rethinking the uniformity metric in self-supervised learning", ICLR 2024,
    arXiv 2403.00642, equation 7.

    Examples:
        >>> wasserstein_uniformity(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(1.4142)
    """
    with torch.autocast(z.device.type, enabled=False):
        z = on_sphere(z, "z")
        mu = z.mean(dim=0)
        s = torch.linalg.svdvals(z - mu) / z.shape[0] ** 0.5
        return wasserstein_of_moments(mu, s)


def wasserstein_of_moments(mu: Tensor, s: Tensor) -> Tensor:
    """`wasserstein_uniformity` from the mean and the roots of the covariance's eigenvalues.

    Args:
        mu: (d,) mean of the normalised rows.
        s: (r,) square roots of the eigenvalues of their covariance, of divisor n.

    Returns:
        A scalar.

    Examples:
        >>> wasserstein_of_moments(torch.tensor([1.0, 0.0]), torch.zeros(2))
        tensor(1.4142)
    """
    squared = mu.square().sum() + 1 + s.square().sum() - 2 / mu.shape[0] ** 0.5 * s.sum()
    # Not zero: there the gradient of the root would be infinite.
    return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
