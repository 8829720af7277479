"""Spectra of weights: whether the layers of an encoder have collapsed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightly_collapse import functional
from lightly_collapse._checks import as_float
from lightly_collapse._layers import LayerWeight, find_weights
from lightly_collapse.functional.gram import tall_singular_values


@dataclass(frozen=True)
class WeightSpectrum:
    """The spectrum of one layer's weight W, read as one row per filter.

    The groups of a grouped convolution see different inputs; their singular values are put
    together.

    Attributes:
        shape: (filters, fan_in).
        normalized_eigenvalues: eigenvalues of W^T W divided by the largest, in descending order.
        orthogonality_residual: the `so` penalty, the squared distance of W from orthonormal
            filters; see `lightly_collapse.functional.orthogonality_penalty`.
        stable_rank: ||W||_F^2 / ||W||_2^2; nan for a zero weight.
        condition_number: s_max / s_min; nan for a zero weight.
    """

    shape: tuple[int, int]
    normalized_eigenvalues: Tensor
    orthogonality_residual: float
    stable_rank: float
    condition_number: float


def weight_spectra(module: nn.Module) -> dict[str, WeightSpectrum]:
    """The spectrum of every convolution, linear and attention layer, frozen ones included.

    Args:
        module: the encoder; its `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` and
            `MultiheadAttention` are looked at. A weight that two layers share counts once.

    Returns:
        One `WeightSpectrum` a weight, by the parameter's name, in the module's order.

    Raises:
        ValueError: if there is no such layer, or a weight is lazy or holds NaN or inf.

    Source: He, Du and Ma, "Preventing dimensional collapse in self-supervised learning via
    orthogonality regularization", NeurIPS 2024, arXiv 2411.00392.

    Examples:
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
        >>> {name: s.shape for name, s in weight_spectra(encoder).items()}
        {'0.weight': (8, 27), '2.weight': (4, 8)}
    """
    with torch.no_grad():
        return {weight.name: _spectrum(weight) for weight in find_weights(module)}


def _spectrum(weight: LayerWeight) -> WeightSpectrum:
    tensor = weight.tensor().detach()
    if not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise ValueError(f"{weight.name} must be finite, got {count} NaN or inf entries")
    w = as_float(functional.weight_matrix(tensor, weight.groups, weight.transposed))
    s = _singular_values(w)
    nonzero = bool(s.any())
    return WeightSpectrum(
        shape=(w.shape[-2] * weight.groups, w.shape[-1]),
        normalized_eigenvalues=((s / s[0]).square() if nonzero else s).cpu(),
        orthogonality_residual=float(
            functional.orthogonality_penalty(tensor, "so", weight.groups, weight.transposed)
        ),
        stable_rank=float(functional.stable_rank(s)) if nonzero else math.nan,
        condition_number=float(functional.condition_number(s)) if nonzero else math.nan,
    )


def _singular_values(w: Tensor) -> Tensor:
    """Of a matrix, or of those of all groups, in descending order."""
    # One matrix is squared in float64, which is faster than float32's decomposition and more exact.
    if w.ndim == 2 and w.dtype == torch.float32 and w.device.type != "mps" and w.any():
        return tall_singular_values(w if w.shape[0] > w.shape[1] else w.mT)
    return torch.linalg.svdvals(w).flatten().sort(descending=True).values
