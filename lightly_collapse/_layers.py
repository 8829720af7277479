"""Which weights a module has, and what of their layers matters to them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_PARTS = "qkv"
_Hook = BasePruningMethod | SpectralNorm | WeightNorm


@dataclass(eq=False)
class LayerWeight:
    """A weight of a layer, or a third of a fused one, looked up in the layer at every call.

    Args:
        parameter: name of the parameter in the module it was found in.
        layer: the layer that owns it.
        attribute: its name in the layer.
        part: `q`, `k` or `v` of a fused weight.
    """

    parameter: str
    layer: Any
    attribute: str = "weight"
    part: str | None = None

    @property
    def name(self) -> str:
        """The parameter's name, and which third of it."""
        return self.parameter if self.part is None else f"{self.parameter}[{self.part}]"

    @property
    def groups(self) -> int:
        """Number of groups of a convolution."""
        return int(getattr(self.layer, "groups", 1))

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return isinstance(self.layer, _TRANSPOSED)

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride of a convolution."""
        return tuple(getattr(self.layer, "stride", ()))

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation of a convolution."""
        return tuple(getattr(self.layer, "dilation", ()))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters behind it: itself, or those of its parametrization or hook."""
        hook = self._hook
        if hook is not None:
            suffixes = ("_g", "_v") if isinstance(hook, WeightNorm) else ("_orig",)
            return [getattr(self.layer, self.attribute + suffix) for suffix in suffixes]
        if is_parametrized(self.layer, self.attribute):
            return list(self.layer.parametrizations[self.attribute].parameters())
        return [getattr(self.layer, self.attribute)]

    @property
    def is_trainable(self) -> bool:
        """Whether a gradient is wanted."""
        return any(p.requires_grad for p in self.parameters)

    @property
    def is_fused_qkv(self) -> bool:
        """Whether it holds queries, keys and values on top of each other."""
        owner = self.parameter.rpartition(".weight")[0].rpartition(".")[2]
        return self.attribute == "in_proj_weight" or (
            isinstance(self.layer, nn.Linear) and owner in ("qkv", "in_proj")
        )

    @property
    def _hook(self) -> _Hook | None:
        """What computes the weight before each forward pass: hook-based pruning or norm.

        The attribute is then no parameter but the result of the last pass, whose graph may be gone.
        """
        for hook in self.layer._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                name = hook._tensor_name
            elif isinstance(hook, SpectralNorm | WeightNorm):
                name = hook.name
            else:
                continue
            if name == self.attribute:
                return hook
        return None

    def _compute(self) -> Tensor:
        hook = self._hook
        weight: Tensor
        if isinstance(hook, BasePruningMethod):
            weight = hook.apply_mask(self.layer)  # type: ignore[no-untyped-call]
        elif isinstance(hook, SpectralNorm):  # at the vectors of the last forward pass
            weight = hook.compute_weight(self.layer, do_power_iteration=False)
        elif isinstance(hook, WeightNorm):
            weight = hook.compute_weight(self.layer)
        else:
            weight = getattr(self.layer, self.attribute)
        return weight

    def tensor(self) -> Tensor:
        """The weight, whole.

        Returns:
            The weight as the layer has it now; gathered, with gradient, where it is sharded.

        Raises:
            ValueError: if it is sharded and there is no process group to gather it from.
        """
        # A parametrized weight is computed on access, which autocast would do in a half type.
        with torch.autocast(self.parameters[0].device.type, enabled=False):
            weight = self._compute()
        if hasattr(weight, "full_tensor"):  # a DTensor, without importing what not all builds have
            if not dist.is_initialized():
                raise ValueError(
                    "module must have its weights whole, or a process group to gather them from: "
                    f"{self.parameter} is sharded and torch.distributed is not initialised"
                )
            weight = weight.full_tensor()
        if self.part is not None:
            weight = weight.tensor_split(len(_PARTS))[_PARTS.index(self.part)]
        return weight

    def split(self) -> "list[LayerWeight]":
        """Queries, keys and values apart.

        Raises:
            ValueError: if the number of rows does not divide by three.
        """
        rows = getattr(self.layer, self.attribute).shape[0]
        if rows % len(_PARTS):
            raise ValueError(
                f"split_qkv needs as many rows for queries, keys and values, but {self.parameter} "
                f"has {rows} rows, which do not divide by three; exclude it or do not split"
            )
        return [LayerWeight(self.parameter, self.layer, self.attribute, part) for part in _PARTS]


def find_weights(module: nn.Module) -> list[LayerWeight]:
    """The weights of all linear, convolutional and attention layers of a module; tied ones once.

    Args:
        module: any module.

    Returns:
        The weights, in the order of `module.named_modules()`.

    Raises:
        ValueError: if there is none, or one is lazy and has no shape yet.

    Examples:
        >>> [w.name for w in find_weights(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))]
        ['0.weight']
    """
    weights = []
    seen: set[int] = set()
    for prefix, layer in module.named_modules():
        for attribute in _attributes(layer):
            weight = LayerWeight(f"{prefix}.{attribute}" if prefix else attribute, layer, attribute)
            if is_parametrized(layer, attribute):
                weights.append(weight)
                continue
            parameter = getattr(layer, attribute)
            if is_lazy(parameter):
                raise ValueError(
                    f"module must have its shapes, but {weight.name} is lazy: "
                    "run a forward pass first"
                )
            if id(parameter) not in seen:
                seen.add(id(parameter))
                weights.append(weight)
    if not weights:
        raise ValueError(
            "module must contain a Linear, Conv, ConvTranspose or MultiheadAttention layer, "
            f"got {type(module).__name__} with none"
        )
    return weights


def has_weights(module: nn.Module) -> bool:
    """Whether `find_weights` would find any."""
    return any(_attributes(layer) for layer in module.modules())


def _attributes(layer: nn.Module) -> list[str]:
    if isinstance(layer, _LAYERS):
        return ["weight"]
    if isinstance(layer, nn.MultiheadAttention):
        return [name for name in _ATTENTION_WEIGHTS if getattr(layer, name) is not None]
    return []


def select_weights(
    weights: list[LayerWeight],
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[LayerWeight]:
    """The weights in whose name an included pattern is found and no excluded one.

    Args:
        weights: those to choose from.
        include: regular expressions; None is all.
        exclude: regular expressions; None is none.

    Returns:
        In their order.

    Raises:
        ValueError: if a pattern is not a regular expression or matches nothing, or none is left.
    """
    included = _matching(weights, include, "include") if include is not None else weights
    if not included:
        raise ValueError("include must hold a pattern or be None, got an empty sequence")
    excluded = _matching(weights, exclude, "exclude") if exclude is not None else []
    selected = [w for w in included if w not in excluded]
    if not selected:
        raise ValueError("exclude must leave a weight to regularize, it leaves out all of them")
    return selected


def _matching(
    weights: list[LayerWeight], patterns: str | Sequence[str], argument: str
) -> list[LayerWeight]:
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{argument} must hold regular expressions, got {pattern!r}: {error}"
            ) from error
        found = {w.name for w in weights if expression.search(w.name)}
        if not found:
            raise ValueError(
                f"{argument} pattern {pattern!r} matches no weight; there are: "
                + ", ".join(w.name for w in weights)
            )
        matched |= found
    return [w for w in weights if w.name in matched]
