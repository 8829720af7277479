"""Which axis of a layer's output holds the channels, told from the layer and its weights.

A shape does not say it: (n, 7, 7, 768) comes from a Swin stage, (n, 768, 7, 7) from a ResNet's. The
layers do: the output of a `Linear` or `LayerNorm` has its channels last, that of a convolution or
`BatchNorm` at axis 1, and the widths of the weights say how many there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)
from torch.nn.parameter import is_lazy

ChannelAxis = Literal["auto", "first", "last"] | int
"""`first` is axis 1, after the samples; a number is an axis."""

Channels = ChannelAxis | Mapping[str, ChannelAxis]
"""An axis for all layers, or by name of the layer."""

_FIRST, _LAST = 1, -1
_WIDTHS: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.Linear, "out_features", _LAST),
    (nn.Embedding, "embedding_dim", _LAST),
    (nn.MultiheadAttention, "embed_dim", _LAST),
    (_BatchNorm, "num_features", _FIRST),
    (_InstanceNorm, "num_features", _FIRST),
    (nn.GroupNorm, "num_channels", _FIRST),
)
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_POOLS = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd)


@dataclass(frozen=True)
class _Parts:
    """What a layer with parameters says of its output.

    Attributes:
        widths: sizes that its channel axis may have.
        axis: where it puts the channels, if its class says so.
        ndim: number of dimensions of its output, if there is one number only.
    """

    widths: frozenset[int]
    axis: int | None = None
    ndim: int | None = None


def channel_axis(
    layer: nn.Module,
    shape: Sequence[int],
    model: nn.Module | None = None,
    channels: ChannelAxis | None = "auto",
) -> int:
    """The axis of the channels in the output of a layer: 1, or -1 for the last.

    A `Linear`, `LayerNorm` or attention layer has them last, a convolution, batch norm or pooling
    layer at axis 1. Of a container they are where its layers agree or else at the axis that has the
    width of its last layer.

    Args:
        layer: the layer that gave the output.
        shape: of the output, (n, ...).
        model: the model that holds the layer; a layer without parameters, such as an activation,
            is told from those beside it.
        channels: `auto`, or the answer: `first`, `last` or an axis.

    Returns:
        1 or -1, or the axis that `channels` gives.

    Raises:
        ValueError: if `channels` is unknown or no axis of this shape, or the axis cannot be told.

    Examples:
        >>> channel_axis(nn.Linear(4, 8), (2, 7, 7, 8))
        -1
        >>> channel_axis(nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU()), (2, 7, 7, 7))
        1
    """
    ndim = len(shape)
    if ndim < 2:
        raise ValueError(f"output must have a batch and a channel axis, got {tuple(shape)}")
    if channels not in (None, "auto"):
        return _named_axis(channels, shape)
    if ndim == 2:
        return _LAST
    if isinstance(layer, _POOLS):
        return _FIRST
    for parts in _evidence(layer, model):
        axis = _told_by(parts, shape)
        if axis is not None:
            return axis
    raise ValueError(
        'channels must say which axis holds the channels, "first" or "last" (or a mapping from '
        f"layer names to these): the output of a {type(layer).__name__} of shape {tuple(shape)} "
        "does not show it"
    )


def check_channels(channels: Channels | None) -> None:
    """Raise a ValueError unless `channels` is known."""
    values = channels.values() if isinstance(channels, Mapping) else (channels,)
    for value in values:
        if value not in (None, "auto", "first", "last") and not _is_axis(value):
            raise ValueError(f"channels must be auto, first, last or an axis, got {value!r}")


def channels_of(channels: Channels | None, name: str) -> ChannelAxis | None:
    """What `channels` says of the layer of that name; `auto` where it says nothing."""
    if isinstance(channels, Mapping):
        return channels.get(name, "auto")
    return channels


def _is_axis(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named_axis(channels: ChannelAxis | None, shape: Sequence[int]) -> int:
    check_channels(channels)
    axis = {"first": _FIRST, "last": _LAST}.get(channels, channels)  # type: ignore[arg-type]
    if not isinstance(axis, int) or not -len(shape) < axis < len(shape) or axis == 0:
        raise ValueError(f"channels must be an axis of {tuple(shape)} but the first, got {axis}")
    return axis


def _evidence(layer: nn.Module, root: nn.Module | None) -> Iterator[list[_Parts]]:
    """The layers with parameters that may have made the output, the most likely one first."""
    own = [parts for m in layer.modules() if (parts := _parts(m)) is not None]
    if own or root is None:
        yield own[::-1]
        return
    # A layer without parameters hands on what came before it, so within the parts of the model
    # that hold it, from the smallest to the whole: before it backwards, then after it.
    path = next((name for name, m in root.named_modules() if m is layer), None)
    while path:
        path = path.rpartition(".")[0]
        before: list[_Parts] = []
        after: list[_Parts] = []
        side = before
        for m in root.get_submodule(path).modules():
            if m is layer:
                side = after
            parts = _parts(m)
            if parts is not None:
                side.append(parts)
        if before or after:
            yield [*before[::-1], *after]


def _told_by(layers: list[_Parts], shape: Sequence[int]) -> int | None:
    """The axis that the layers agree on, or that has the width of the nearest; None if neither."""
    ndim = len(shape)
    votes = {p.axis for p in layers if p.axis is not None and p.ndim in (None, ndim)}
    agreed = votes.pop() if len(votes) == 1 else None
    sizes = dict(zip([_FIRST, *range(2, ndim - 1), _LAST], shape[1:], strict=True))
    matches = next((m for p in layers if (m := [a for a in sizes if sizes[a] in p.widths])), [])
    if agreed is not None and (not matches or agreed in matches):
        return agreed
    if len(matches) != 1:
        # A concatenation is wider than any of its layers, and its height and width may be theirs.
        return agreed
    # One axis alone has a known width. Where the layers agree on another, the output is permuted,
    # which cannot be told from a concatenation if that other one is larger.
    ambiguous = agreed is not None and sizes[agreed] > sizes[matches[0]]
    return matches[0] if matches[0] in (_FIRST, _LAST) and not ambiguous else None


def _parts(module: nn.Module) -> _Parts | None:
    """What a layer says of its output by its own parameters; None if it has none."""
    if isinstance(module, _ConvNd):
        return _Parts(frozenset({module.out_channels}), _FIRST, len(module.kernel_size) + 2)
    if isinstance(module, _NORMS):
        # timm and torchvision derive a LayerNorm2d of (n, c, h, w) from the class of the others.
        is_2d = type(module).__name__.endswith("2d")
        width = frozenset({module.normalized_shape[-1]})
        return _Parts(width, _FIRST, 4) if is_2d else _Parts(width, _LAST)
    for kind, attribute, axis in _WIDTHS:
        if isinstance(module, kind):
            return _Parts(frozenset({getattr(module, attribute)}), axis)
    return _other_parts(module)


def _other_parts(module: nn.Module) -> _Parts | None:
    """Of any other class: scales and biases have a channel each, a matrix has two widths."""
    widths: set[int] = set()
    axis = None
    for name, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter) or parameter.numel() < 2:
            continue
        sizes = [size for size in parameter.shape if size > 1]
        if len(sizes) == 1:
            widths.add(sizes[0])
            # (c, 1, 1) is broadcast over the positions of (n, c, h, w).
            if parameter.ndim > 1 and parameter.shape[-1] == 1:
                axis = _FIRST
        elif name == "weight":
            widths |= {parameter.shape[0], parameter.shape[-1]}
    return _Parts(frozenset(widths), axis) if widths else None
