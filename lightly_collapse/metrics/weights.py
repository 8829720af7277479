"""Spectra of weights: whether the layers of an encoder have collapsed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightly_collapse import functional
from lightly_collapse.functional._check import as_float

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


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
    """The spectrum of every convolution and linear layer, frozen ones included.

    Args:
        module: the encoder; its `Linear`, `Conv1d/2d/3d` and `ConvTranspose1d/2d/3d` are looked at.
            A weight that two layers share counts once.

    Returns:
        One `WeightSpectrum` a layer, by name, in the module's order.

    Raises:
        ValueError: if there is no such layer, or a weight is lazy or holds NaN or inf.

    Source: He, Du and Ma, "Preventing dimensional collapse in self-supervised learning via
    orthogonality regularization", NeurIPS 2024, arXiv 2411.00392.

    Examples:
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
        >>> {name: s.shape for name, s in weight_spectra(encoder).items()}
        {'0': (8, 27), '2': (4, 8)}
    """
    spectra = {}
    seen: set[int] = set()
    for name, layer in module.named_modules():
        if not isinstance(layer, _LAYERS):
            continue
        if is_lazy(layer.weight):
            raise ValueError(
                f"module must have its shapes, but {name or 'it'} is lazy: run a forward pass first"
            )
        # A weight under a parametrization is another tensor each time it is looked at.
        shared = layer.weight if "weight" in dict(layer.named_parameters(recurse=False)) else layer
        if id(shared) not in seen:
            seen.add(id(shared))
            spectra[name or type(layer).__name__] = _spectrum(name, layer)
    if not spectra:
        raise ValueError(
            "module must contain a Linear, Conv or ConvTranspose layer, "
            f"got {type(module).__name__} with none"
        )
    return spectra


def _spectrum(name: str, layer: nn.Module) -> WeightSpectrum:
    groups = getattr(layer, "groups", 1)
    transposed = isinstance(layer, _TRANSPOSED)
    with torch.no_grad():
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        if not weight.isfinite().all():
            count = int((~weight.isfinite()).sum())
            raise ValueError(f"weight of {name or 'the module'} holds {count} NaN or inf entries")
        w = as_float(functional.weight_matrix(weight, groups, transposed))
        s = torch.linalg.svdvals(w).flatten().sort(descending=True).values
        residual = float(functional.orthogonality_penalty(weight, "so", groups, transposed))
        nonzero = bool(s.any())
        return WeightSpectrum(
            shape=(w.shape[-2] * groups, w.shape[-1]),
            normalized_eigenvalues=((s / s[0]).square() if nonzero else s).cpu(),
            orthogonality_residual=residual,
            stable_rank=float(functional.stable_rank(s)) if nonzero else math.nan,
            condition_number=float(functional.condition_number(s)) if nonzero else math.nan,
        )
