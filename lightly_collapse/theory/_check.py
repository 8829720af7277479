"""What the theory asks of its matrices, said once."""

import torch
from torch import Tensor


def covariance_root(covariance: Tensor, name: str) -> Tensor:
    """A float32 matrix R of shape (k, D), k the rank, with R^T R = covariance.

    Raises:
        ValueError: if `covariance` is not a symmetric positive semi-definite matrix.
    """
    values, vectors = torch.linalg.eigh(check_covariance(covariance, name))
    kept = values > 1e-12 * values[-1]
    root: Tensor = values[kept].sqrt()[:, None] * vectors.T[kept]
    return root.float()


def check_covariance(covariance: Tensor, name: str) -> Tensor:
    """Return `covariance` in float64, made exactly symmetric, or raise.

    Raises:
        ValueError: if `covariance` is not a finite symmetric positive semi-definite matrix, up to
            rounding (1e-5 of its largest eigenvalue).
    """
    covariance = check_symmetric(covariance, name)
    values = torch.linalg.eigvalsh(covariance)
    if values[0] < -1e-5 * values[-1].clamp(min=0):
        raise ValueError(
            f"{name} must be positive semi-definite, got an eigenvalue {values[0].item():.3g} "
            f"(largest {values[-1].item():.3g})"
        )
    return covariance


def check_symmetric(matrix: Tensor, name: str) -> Tensor:
    """Return `matrix` in float64, made exactly symmetric, or raise.

    Raises:
        ValueError: if `matrix` is not a finite square matrix, symmetric up to rounding.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 1:
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
    matrix = matrix.double()
    if not matrix.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or inf entries")
    gap = (matrix - matrix.T).abs().max()
    if gap > 1e-5 * matrix.abs().max():
        raise ValueError(
            f"{name} must be symmetric, got entries that differ from their mirror image "
            f"by up to {gap.item():.3g}"
        )
    return (matrix + matrix.T) / 2
