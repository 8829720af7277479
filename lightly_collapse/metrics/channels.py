"""Which axis of a layer's output holds the channels, found out from the layer and its widths."""

from collections.abc import Iterator, Sequence

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

_FIRST = (
    _ConvNd,
    _BatchNorm,
    _InstanceNorm,
    nn.GroupNorm,
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)
_WIDTHS = ("out_channels", "out_features", "num_features", "num_channels", "embed_dim")


def channel_axis(layer: nn.Module, shape: Sequence[int], model: nn.Module | None = None) -> int:
    """The axis of the channels in the output of a layer: 1, or -1 for the last.

    A `Linear`, `LayerNorm` or attention layer has them last, a convolution, batch norm or pooling
    layer second. Of a container, and of a normalization that is used both ways, the axis is the one
    whose size is the width of the weights; where both axes have that size, the layers inside decide
    if they agree.

    Args:
        layer: the layer that gave the output.
        shape: of the output, (n, ...).
        model: the model that the layer is a part of, looked at where the layer has no weights.

    Returns:
        1 or -1.

    Raises:
        ValueError: if it cannot be told; the message names the argument `channels`.

    Examples:
        >>> channel_axis(nn.Linear(4, 8), (2, 7, 7, 8))
        -1
        >>> channel_axis(nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU()), (2, 7, 7, 7))
        1
    """
    if len(shape) <= 2:
        return -1
    inner = list(_layers_with_width(layer)) or list(_before(layer, model))
    if (own := _convention(layer)) is not None and not list(layer.children()):
        return own
    # The last layers first: their width is that of the output, unless registered out of order.
    for widths in ([w for _, w in inner[-1:]], [w for _, w in inner]):
        fitting = [axis for axis in (1, -1) if shape[axis] in widths]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    conventions = {_convention(part) for part, _ in inner}
    if len(conventions) == 1 and (agreed := conventions.pop()) is not None:
        return agreed
    if inner and len(shape) == 3 and _convention(inner[-1][0]) != 1:
        return -1  # (n, tokens, c), as every transformer has it
    raise ValueError(
        "channels must say which axis holds the channels, 1 or -1: the output of a "
        f"{type(layer).__name__} of shape {tuple(shape)} does not show it"
    )


def _convention(layer: nn.Module) -> int | None:
    if isinstance(layer, _FIRST):
        return 1
    # Subclasses of LayerNorm often normalize the second axis (LayerNorm2d).
    if isinstance(layer, (nn.Linear, nn.MultiheadAttention, nn.Embedding)):
        return -1
    return -1 if type(layer) is nn.LayerNorm else None


def _width(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[-1])
    for name in _WIDTHS:
        value = getattr(layer, name, None)
        if isinstance(value, int) and any(True for _ in layer.parameters()):
            return value
    return None


def _layers_with_width(module: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for part in module.modules():
        width = _width(part) if not list(part.children()) else None
        if width is not None:
            yield part, width


def _before(layer: nn.Module, model: nn.Module | None) -> Iterator[tuple[nn.Module, int]]:
    """What is registered before a layer without weights, such as the norm before an activation."""
    last: tuple[nn.Module, int] | None = None
    for part in model.modules() if model is not None else ():
        if part is layer:
            break
        width = _width(part) if not list(part.children()) else None
        last = (part, width) if width is not None else last
    if last is not None:
        yield last
