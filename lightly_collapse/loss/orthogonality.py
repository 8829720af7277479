"""Orthogonality regularization of the weights of an encoder."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lightly_collapse.functional.orthogonality import check_kind, orthogonality_penalty

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class OrthogonalityRegularizer(nn.Module):
    """Weighted sum, over a module's layers, of their weights' distance from orthonormal filters.

    Add `forward()` to the self-supervised loss. The penalty acts on the weight of every `Linear`,
    `Conv1d/2d/3d` and `ConvTranspose1d/2d/3d` of the module, read as one vector per filter, each
    group of a grouped convolution by itself; norms, embeddings, biases and parameters that do not
    require a gradient are left out, and so is the input projection of `MultiheadAttention`, which
    is no `Linear` (torchvision's vision transformers have one; timm's `qkv` is a `Linear`). The
    module's parameters are looked at, not owned: they appear neither in `parameters()` nor in
    `state_dict()` of the regularizer.

    Args:
        module: the encoder to regularize.
        kind: `so` (soft orthogonality), `dso` (double-sided), `mc` (mutual coherence) or `srip`
            (spectral restricted isometry); see `lightly_collapse.functional.orthogonality_penalty`.
        weight: gamma; reasonable starting points are 1e-7 to 1e-5 for `so`, 1e-5 to 1e-3 for
            `srip`.
        include: regular expressions; only parameters in whose name one of them is found (as
            `layer4.0.conv1.weight`, by `re.search`) are regularized.
        exclude: regular expressions; parameters in whose name one of them is found are left out.

    Raises:
        ValueError: if `kind` is unknown, `weight` is negative or not finite, a pattern is not a
            regular expression or matches nothing, or there is nothing to regularize.

    Source: He, Du and Ma, "Preventing dimensional collapse in self-supervised learning via
    orthogonality regularization", NeurIPS 2024, arXiv 2411.00392; Bansal, Chen and Wang, NeurIPS
    2018, arXiv 1810.09102.

    Examples:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 8))
        >>> regularizer = OrthogonalityRegularizer(backbone, kind="so", weight=1e-6)
        >>> penalty = regularizer()  # loss = loss + penalty
        >>> list(regularizer.residuals())
        ['0.weight', '2.weight']
    """

    def __init__(
        self,
        module: nn.Module,
        kind: str = "so",
        weight: float = 1e-6,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_kind(kind)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {weight}")
        self.kind = kind
        self.weight = weight
        # Pairs in a list are no submodules: the weights stay out of this module's state, and a
        # deep copy or a pickle of both together keeps them the same object.
        self._layers = _select(_find_layers(module), include, exclude)
        if not any(_is_trainable(layer) for _, layer in self._layers):
            raise ValueError(
                "module must have a weight that requires a gradient, got only frozen ones: "
                + ", ".join(name for name, _ in self._layers)
            )

    def forward(self) -> Tensor:
        """Compute the weighted penalty.

        Returns:
            A scalar, float32 or the weights' float64, with a gradient.

        Raises:
            ValueError: if every weight has been frozen since.
        """
        penalties = [penalty for _, penalty in self._penalties()]
        if not penalties:
            raise ValueError("module must have a weight that requires a gradient, all are frozen")
        device = penalties[0].device
        return self.weight * torch.stack([penalty.to(device) for penalty in penalties]).sum()

    @torch.no_grad()
    def residuals(self) -> dict[str, float]:
        """The unweighted penalty of every layer.

        Returns:
            From the name of the parameter in the module to its penalty.
        """
        return {name: penalty.item() for name, penalty in self._penalties()}

    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return f"kind={self.kind!r}, weight={self.weight}, layers={len(self._layers)}"

    def _penalties(self) -> Iterator[tuple[str, Tensor]]:
        for name, layer in self._layers:
            # Asked at every call: training scripts freeze, thaw and replace parameters.
            if _is_trainable(layer):
                groups = getattr(layer, "groups", 1)
                transposed = isinstance(layer, _TRANSPOSED)
                yield name, orthogonality_penalty(_weight(layer), self.kind, groups, transposed)


def _is_trainable(layer: Any) -> bool:
    if is_parametrized(layer, "weight"):
        return any(p.requires_grad for p in layer.parametrizations["weight"].parameters())
    return bool(layer.weight.requires_grad)


def _weight(layer: Any) -> Tensor:
    # A parametrized weight is computed on access, which autocast would do in a half type.
    with torch.autocast(next(layer.parameters()).device.type, enabled=False):
        weight: Tensor = layer.weight
    return weight


_NamedLayers = list[tuple[str, Any]]


def _find_layers(module: nn.Module) -> _NamedLayers:
    layers = []
    seen: set[int] = set()
    for prefix, layer in module.named_modules():
        name = f"{prefix}.weight" if prefix else "weight"
        if not isinstance(layer, _LAYERS):
            continue
        if is_parametrized(layer, "weight"):
            layers.append((name, layer))
        elif is_lazy(layer.weight):
            raise ValueError(
                f"module must have its shapes, but {name} is lazy: run a forward pass first"
            )
        elif id(layer.weight) not in seen:  # a tied weight counts once
            seen.add(id(layer.weight))
            layers.append((name, layer))
    if not layers:
        raise ValueError(
            "module must contain a Linear, Conv or ConvTranspose layer, "
            f"got {type(module).__name__} with none"
        )
    return layers


def _select(
    layers: _NamedLayers, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> _NamedLayers:
    included = _matching(layers, include, "include") if include is not None else layers
    if not included:
        raise ValueError("include must hold a pattern or be None, got an empty sequence")
    excluded = _matching(layers, exclude, "exclude") if exclude is not None else []
    names = {name for name, _ in excluded}
    selected = [(name, layer) for name, layer in included if name not in names]
    if not selected:
        raise ValueError("exclude must leave a weight to regularize, it leaves out all of them")
    return selected


def _matching(layers: _NamedLayers, patterns: str | Sequence[str], argument: str) -> _NamedLayers:
    matched: dict[str, Any] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{argument} must hold regular expressions, got {pattern!r}: {error}"
            ) from error
        found = {name: layer for name, layer in layers if expression.search(name)}
        if not found:
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no weight; there are: "
                + ", ".join(name for name, _ in layers)
            )
        matched |= found
    return [(name, layer) for name, layer in layers if name in matched]
