"""Hidden features: forward hooks on named layers that hand their outputs on as rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse._hooks import Hook
from lightly_collapse.metrics.channels import (
    ChannelAxis,
    Channels,
    channel_axis,
    channels_of,
    check_channels,
)
from lightly_collapse.metrics.features import (
    FEATURE_KEYS,
    Tokens,
    check_tokens,
    dinov2_tokens,
    feature_rows,
    first_tensor,
)
from lightly_collapse.metrics.prefix_tokens import PrefixTokens, prefix_tokens

CLS, PATCH = ".cls", ".patch"
"""What is appended to the name of a layer whose class token and patches are told apart."""

# What torch.compile, FSDP and checkpoint_wrapper put into the names of modules.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class FeatureHooks:
    """Forward hooks on named layers that hand every output on as rows, until they are removed.

    Args:
        module: the module whose layers are hooked.
        layers: names as in `named_modules()`; the empty name is the module itself. The
            `_orig_mod.` that `torch.compile` puts into names may be left out.
        take: called with the layer's name and its (rows, channels) at every forward pass.
        tokens: as for `feature_rows`, except that `auto` hands on class token and patches, one row
            a token, as two layers `<layer>.cls` and `<layer>.patch` where an output has both, and
            else the `mean`.
        channels: `auto`, `first`, `last` or an axis, for all layers or by name.
        prefix: number of prefix tokens, of which the first is the class token; found by
            `prefix_tokens` by default.
        when: asked at every forward pass whether its output is wanted; always by default.
        on_error: called with the layer's name and the error where an output cannot be made rows or
            `take` or `dense` fails; by default the error is raised in the forward pass.
        dense: called with the name of the layer of patches and the (n, p, c) patch tokens of a
            sequence, before `take`, where `tokens` is `auto` or `patch`.

    A layer inside a module that `torch.compile` compiles is traced with its hook: its outputs wait
    for `flush`. Hooks put on after the first compiled call are not run.

    Raises:
        ValueError: if no layer is given, one does not exist, or `tokens` or `channels` is unknown;
            in the forward pass as `feature_rows`, unless there is `on_error`.

    Examples:
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(6))
        >>> seen = {}
        >>> with FeatureHooks(encoder, ["0", "1"], seen.__setitem__, tokens="all"):
        ...     y = encoder(torch.zeros(2, 3, 8, 8))
        >>> {name: rows.shape for name, rows in seen.items()}
        {'0': torch.Size([72, 8]), '1': torch.Size([72, 8])}
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        take: Callable[[str, Tensor], Any],
        tokens: Tokens = "auto",
        channels: Channels | None = "auto",
        prefix: int | None = None,
        when: Callable[[], bool] | None = None,
        on_error: Callable[[str, Exception], Any] | None = None,
        dense: Callable[[str, Tensor], Any] | None = None,
    ) -> None:
        check_tokens(tokens)
        check_channels(channels)
        submodules = find_layers(module, layers)
        self._module, self._tokens, self._channels = module, tokens, channels
        self._prefix = None if prefix is None else PrefixTokens(prefix, prefix > 0)
        self._paths = {m: name for name, m in module.named_modules()}
        self._take, self._when, self._on_error, self._dense = take, when, on_error, dense
        self._pending: list[tuple[str, nn.Module, Any]] = []
        self._handles = [
            layer.register_forward_hook(Hook(self._hook(name)))
            for name, layer in submodules.items()
        ]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: Any, output: Any) -> None:
            if self._when is not None and not self._when():
                return
            if not torch.compiler.is_compiling():
                self._try_split(name, layer, output)
            elif (x := _tensor_of(output)) is not None:
                self._pending.append((name, layer, x.detach()))

        return hook

    def flush(self) -> None:
        """Hand on the outputs of layers in compiled modules; others never wait."""
        pending, self._pending = self._pending, []
        for name, layer, output in pending:
            self._try_split(name, layer, output)

    def discard(self) -> None:
        """Drop the outputs that wait for `flush`."""
        self._pending.clear()

    def _try_split(self, name: str, layer: nn.Module, output: Any) -> None:
        try:
            self.split(name, layer, output)
        except Exception as error:  # whatever an exotic tensor or a callback raises
            if self._on_error is None:
                raise
            self._on_error(name, error)

    def split(self, name: str, layer: nn.Module, output: Any) -> None:
        """Hand an output of a layer on, as one layer or as its class token and its patches."""
        x = dinov2_tokens(output)
        channels: ChannelAxis | None = "last"
        prefix: PrefixTokens | None = PrefixTokens(1, True)
        if x is None:
            x = first_tensor(output)
            channels = channels_of(self._channels, name)
            prefix = self._prefix_of(layer, x)
        patches = x.shape[1] - prefix.count if prefix is not None else 0
        if self._tokens == "auto" and prefix and prefix.has_class_token and patches > 0:
            axis = channel_axis(layer, x.shape, self._module, channels)
            if axis in (2, -1):
                if self._dense is not None:
                    self._dense(name + PATCH, x.detach()[:, prefix.count :])
                self._take(name + CLS, feature_rows(x, "cls", axis, prefix=prefix))
                self._take(name + PATCH, feature_rows(x, "patch", axis, prefix=prefix))
                return
        if self._dense is not None and prefix and self._tokens in ("auto", "patch") and patches > 1:
            axis = channel_axis(layer, x.shape, self._module, channels)
            if axis in (2, -1):
                self._dense(name, x.detach()[:, prefix.count :])
        rows = feature_rows(
            x, self._tokens, channels, layer=layer, model=self._module, prefix=prefix
        )
        self._take(name, rows)

    def _prefix_of(self, layer: nn.Module, x: Tensor) -> PrefixTokens | None:
        if x.ndim != 3:
            return None
        return self._prefix or prefix_tokens(self._module, self._paths[layer], x.shape[1])

    def remove(self) -> None:
        """Remove the hooks; more than once does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pending.clear()

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
    tokens: Tokens = "mean",
    channels: Channels | None = "auto",
    prefix: int | None = None,
) -> dict[str, Tensor]:
    """The hidden features of named layers for one batch.

    Args:
        module: the encoder, called once, in the mode it is in, without gradient.
        x: its input; a mapping is given to it as keyword arguments.
        layers: names as in `named_modules()`.
        tokens: as for `FeatureHooks`.
        channels: as for `FeatureHooks`.
        prefix: as for `FeatureHooks`.

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
    calls: dict[str, list[Tensor]] = {}

    def take(name: str, rows: Tensor) -> None:
        calls.setdefault(name, []).append(rows)

    with FeatureHooks(module, layers, take, tokens, channels, prefix), torch.no_grad():
        module(**x) if isinstance(x, Mapping) else module(x)
    silent = silent_layers(layers, calls)
    if silent:
        raise ValueError(f"layers must be called in forward, got {', '.join(map(repr, silent))}")
    return {name: torch.cat(found) for name, found in calls.items()}


def silent_layers(layers: Iterable[str], seen: Iterable[str]) -> list[str]:
    """The layers of which `FeatureHooks` has handed on nothing.

    Args:
        layers: names as they were given to it.
        seen: names that it has handed on.

    Returns:
        Names among `layers`, in their order.

    Examples:
        >>> silent_layers(["encoder", "head"], ["encoder.cls", "encoder.patch"])
        ['head']
    """
    names = set(seen)
    return [n for n in layers if names.isdisjoint((n, n + CLS, n + PATCH))]


def find_layers(module: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules of these names, with or without the `_orig_mod.` of compiled ones.

    Raises:
        ValueError: if none is named or one does not exist; the message names the nearest that do.
    """
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a sequence of at least one layer name, got {layers!r}")
    named = dict(module.named_modules())
    # Of two modules with one plain name the inner is the one whose forward hooks always run.
    plain = {plain_name(name): m for name, m in named.items()}
    for name in layers:
        if name not in named and name not in plain:
            near = get_close_matches(name, plain, n=3) or [n for n in plain if n and "." not in n]
            raise ValueError(
                f"layers must name modules of {type(module).__name__}, got {name!r}; "
                f"there are {', '.join(near[:8])}"
            )
    return {name: named[name] if name in named else plain[name] for name in layers}


def plain_name(name: str) -> str:
    """A module's name without what torch.compile, FSDP and checkpoint wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _tensor_of(output: Any) -> Tensor | None:
    """`first_tensor` for torch.compile, which traces no error: None where it would raise one."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        if "x_norm_clstoken" in tensors:  # of its patches the flushed tensor would not tell
            return tensors["x_norm_clstoken"]
        known = [tensors[key] for key in FEATURE_KEYS if key in tensors]
        output = known[0] if known else next(iter(tensors.values()), None)
    return output if isinstance(output, Tensor) else None
