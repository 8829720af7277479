"""Variance and covariance of the dimensions of a batch: are they spread out, and decorrelated."""

import torch
from torch import Tensor

from lightly_collapse._checks import check_rows


def variance_penalty(z: Tensor, target: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Mean hinge of the standard deviations: 1/d sum_j max(0, target - sqrt(var(z_j) + eps)).

    var has the divisor n - 1.

    Args:
        z: (n, d) features, at least two rows; half types are computed in float32.
        target: standard deviation from which on a dimension is not penalised.
        eps: added to the variance, so that the root has a finite gradient at zero.

    Returns:
        A scalar between 0 and `target`, float32 or float64.

    Raises:
        ValueError: if `z` is not 2-D, has fewer than two rows or holds NaN or inf, or `target` or
            `eps` is not positive and finite.

    Source: Bardes, Ponce and LeCun, "VICReg", ICLR 2022, arXiv 2105.04906, equations 1 and 2.

    Examples:
        >>> variance_penalty(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))  # (0 + 1 - 0.01) / 2
        tensor(0.4950)
    """
    for value, name in ((target, "target"), (eps, "eps")):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    z = check_rows(z, "z", minimum=2)
    with torch.autocast(z.device.type, enabled=False):
        return (target - (z.var(dim=0) + eps).sqrt()).clamp(min=0).mean()


def covariance_penalty(z: Tensor) -> Tensor:
    """Squared covariances of different dimensions: 1/d sum_{i != j} C_ij^2.

    C is the covariance matrix of divisor n - 1. With at most half as many rows as dimensions the
    sum is taken from the (n, n) Gram matrix of the centred rows, whose squared norm is that of
    (n - 1) C, less the squared variances.

    Args:
        z: (n, d) features, at least two rows; half types are computed in float32.

    Returns:
        A scalar, float32 or float64.

    Raises:
        ValueError: if `z` is not 2-D, has fewer than two rows or holds NaN or inf.

    Source: Bardes, Ponce and LeCun, "VICReg", ICLR 2022, arXiv 2105.04906, equations 3 and 4.

    Examples:
        >>> covariance_penalty(torch.tensor([[0.0, 0.0], [2.0, 1.0]]))  # C_01 = 1, twice, over 2
        tensor(1.)
    """
    z = check_rows(z, "z", minimum=2)
    n, d = z.shape
    with torch.autocast(z.device.type, enabled=False):
        z = (z - z.mean(dim=0)) / (n - 1) ** 0.5
        if 2 * n <= d:
            variances = z.square().sum(dim=0)
            return ((z @ z.mT).square().sum() - variances.square().sum()) / d
        covariance = z.mT @ z
        return (covariance - covariance.diagonal().diag()).square().sum() / d
