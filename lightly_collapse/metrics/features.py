"""Hidden features: the outputs of named layers as rows of samples, channels as dimensions."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightly_collapse.metrics.channels import channel_axis

Positions = Literal["mean", "all"]

_POSITIONS = ("mean", "all")
# Where models that return a dictionary keep their features: transformers, DINOv2, timm.
_FEATURE_KEYS = ("last_hidden_state", "features", "x_norm_patchtokens", "hidden_state", "out")


def feature_rows(output: Any, positions: Positions = "mean", channels: int | None = None) -> Tensor:
    """A layer's output as a matrix: channels are dimensions, samples (and positions) are rows.

    Args:
        output: (n, c), (n, tokens, c) or (n, c, *spatial). Of a tuple or list the first entry is
            taken; of a dictionary, such as transformers' outputs, `last_hidden_state`, `features`
            or its only tensor.
        positions: `mean` averages over the positions of a sample, one row a sample; `all` takes
            every position as a row.
        channels: the axis of the channels. By default the last of 2-D and 3-D outputs and the
            second of larger ones; `FeatureHooks` finds it from the layer, see `channel_axis`.

    Returns:
        (rows, c), detached.

    Raises:
        ValueError: if the output is no tensor, has fewer than two dimensions or no such one, or
            `positions` is unknown.

    Examples:
        >>> feature_rows(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8])
        >>> feature_rows(torch.zeros(2, 8, 4, 4), positions="all").shape
        torch.Size([32, 8])
        >>> feature_rows(torch.zeros(2, 197, 768), positions="all").shape
        torch.Size([394, 768])
    """
    check_positions(positions)
    x = first_tensor(output).detach()
    if x.ndim < 2:
        raise ValueError(f"output must have a batch and a channel axis, got {tuple(x.shape)}")
    axis = channels if channels is not None else (-1 if x.ndim <= 3 else 1)
    if not -x.ndim < axis < x.ndim or axis == 0:
        raise ValueError(f"channels must be an axis of {tuple(x.shape)} but the first, got {axis}")
    x = x.movedim(axis, -1)
    if positions == "all":
        return x.flatten(0, -2)
    return x.flatten(1, -2).float().mean(dim=1) if x.ndim > 2 else x


def first_tensor(output: Any) -> Tensor:
    """The features in what a module returned.

    Args:
        output: a tensor; a tuple or list, of which the first entry is taken; or a dictionary, of
            which `last_hidden_state`, `features`, or the only tensor is taken.

    Returns:
        The tensor.

    Raises:
        ValueError: if there is none, or several and none has a known name.

    Examples:
        >>> first_tensor({"last_hidden_state": torch.zeros(2, 4), "pooler_output": None}).shape
        torch.Size([2, 4])
    """
    while not isinstance(output, Tensor):
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
            continue
        if not isinstance(output, Mapping):
            raise ValueError(
                f"output must be a tensor or begin with one, got {type(output).__name__}"
            )
        tensors = {str(k): v for k, v in output.items() if isinstance(v, Tensor)}
        known = [key for key in _FEATURE_KEYS if key in tensors]
        if not known and len(tensors) != 1:
            raise ValueError(
                f"output must be a tensor, got {type(output).__name__} with the tensors "
                f"{', '.join(tensors) or 'none'}; name an inner layer instead"
            )
        output = tensors[known[0]] if known else next(iter(tensors.values()))
    return output


class FeatureHooks:
    """Forward hooks on named layers that pass every output on as rows, until removed.

    Args:
        module: the module whose layers are hooked.
        layers: names as in `named_modules()`; the empty name is the module itself.
        take: called with the layer's name and its (rows, channels) at every forward pass.
        positions: as for `feature_rows`.
        channels: the axis of the channels for all layers, or by layer; by default it is found for
            each by `channel_axis`.

    Raises:
        ValueError: if no layer is given, one does not exist, or `positions` is unknown; in a
            forward pass if the axis of the channels cannot be found.

    Examples:
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(6))
        >>> seen = {}
        >>> with FeatureHooks(encoder, ["0", "1"], seen.__setitem__, positions="all"):
        ...     y = encoder(torch.zeros(2, 3, 8, 8))
        >>> {name: rows.shape for name, rows in seen.items()}
        {'0': torch.Size([72, 8]), '1': torch.Size([72, 8])}
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        take: Callable[[str, Tensor], Any],
        positions: Positions = "mean",
        channels: int | Mapping[str, int] | None = None,
    ) -> None:
        check_positions(positions)
        submodules = find_layers(module, layers)

        def hook_of(name: str) -> Callable[..., None]:
            given = channels.get(name) if isinstance(channels, Mapping) else channels

            def hook(layer: nn.Module, _: Any, output: Any) -> None:
                x = first_tensor(output)
                axis = channel_axis(layer, x.shape, module) if given is None else given
                take(name, feature_rows(x, positions, axis))

            return hook

        self._handles = [
            layer.register_forward_hook(hook_of(name)) for name, layer in submodules.items()
        ]

    def remove(self) -> None:
        """Remove the hooks; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> "FeatureHooks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def hidden_features(
    module: nn.Module,
    x: Any,
    layers: Sequence[str],
    positions: Positions = "mean",
    channels: int | Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """The hidden features of named layers for one batch.

    Args:
        module: the encoder, called once, in the mode it is in, without gradient.
        x: its input.
        layers: names as in `named_modules()`.
        positions: as for `feature_rows`.
        channels: as for `FeatureHooks`.

    Returns:
        (rows, channels) by layer; all its calls one below the other where it is called repeatedly.

    Raises:
        ValueError: if a layer does not exist, was not called, or gives no tensor.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> features = hidden_features(encoder, torch.zeros(5, 4), ["0", "2"])
        >>> {name: z.shape for name, z in features.items()}
        {'0': torch.Size([5, 8]), '2': torch.Size([5, 2])}
    """
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}
    with (
        FeatureHooks(module, layers, lambda name, z: calls[name].append(z), positions, channels),
        torch.no_grad(),
    ):
        module(x)
    silent = [name for name, found in calls.items() if not found]
    if silent:
        raise ValueError(f"layers must be called in forward, got {', '.join(map(repr, silent))}")
    return {name: torch.cat(found) for name, found in calls.items()}


def find_layers(module: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules of these names.

    Raises:
        ValueError: if none is named or one does not exist; the message names the nearest that do.
    """
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a sequence of at least one layer name, got {layers!r}")
    named = dict(module.named_modules())
    for name in layers:
        if name not in named:
            near = get_close_matches(name, named, n=3) or [n for n in named if n and "." not in n]
            raise ValueError(
                f"layers must name modules of {type(module).__name__}, got {name!r}; "
                f"there are {', '.join(near[:8])}"
            )
    return {name: named[name] for name in layers}


def check_positions(positions: str) -> None:
    """Raise a ValueError unless `positions` is known."""
    if positions not in _POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(_POSITIONS)}, got {positions!r}")
