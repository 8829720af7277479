"""Patch tokens of a reference model for the same images, for Gram drift."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse._hooks import Hook
from lightly_collapse.metrics.channels import Channels
from lightly_collapse.metrics.feature_hooks import FeatureHooks, find_layers
from lightly_collapse.metrics.features import Tokens

PatchTokens = dict[str, list[Tensor]]
"""(n, p, c) tokens by name of the layer of patches, one entry a call."""


class ReferenceModel:
    """A frozen model that gives the patch tokens of named layers for a model's own inputs.

    It is put into evaluation mode and on the device of its input, runs without gradient, and draws
    no number from the random generators of the training.

    Args:
        model: the reference, such as the backbone of an earlier checkpoint.
        layers: names as in its `named_modules()`.
        tokens: as `lightly_collapse.metrics.FeatureHooks`.
        channels: as `lightly_collapse.metrics.FeatureHooks`.
        prefix: as `lightly_collapse.metrics.FeatureHooks`.

    Raises:
        ValueError: if a layer does not exist.

    Examples:
        >>> from torchvision.models import VisionTransformer
        >>> reference = ReferenceModel(VisionTransformer(32, 16, 1, 2, 8, 16), ["encoder.ln"])
        >>> {name: calls[0].shape for name, calls in reference(torch.rand(2, 3, 32, 32)).items()}
        {'encoder.ln.patch': torch.Size([2, 4, 8])}
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        tokens: Tokens = "auto",
        channels: Channels | None = "auto",
        prefix: int | None = None,
    ) -> None:
        find_layers(model, layers)
        self.model = model.eval()
        self._tokens, self._channels, self._prefix = tokens, channels, prefix
        self._layers = layers

    def __call__(self, *args: Any, **kwargs: Any) -> PatchTokens:
        """The tokens of every layer for these inputs of the model."""
        found: PatchTokens = {}
        device = next((x.device for x in _tensors((args, kwargs))), torch.device("cpu"))
        devices = [device.index or 0] if device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.no_grad())
            self.model.to(device)
            stack.enter_context(
                FeatureHooks(
                    self.model,
                    self._layers,
                    lambda *_: None,
                    self._tokens,
                    self._channels,
                    self._prefix,
                    dense=lambda name, x: found.setdefault(name, []).append(x),
                )
            )
            self.model(*args, **kwargs)
        return found


class ReferencePass:
    """Runs a reference on the inputs of a module of the model, after each of its forward passes.

    Args:
        owner: the module whose inputs the reference gets.
        reference: the reference model.
        inner: from the names of the layers of patches in the model to those in the reference.
        choose: which images of a batch are measured, and their weights.
        pair: called with a layer's name, its tokens, the weights and the tokens of the reference,
            None where it gave none that fit.
        when: asked at every forward pass whether it counts.
        on_error: called with the error where the reference cannot be run.
    """

    def __init__(
        self,
        owner: nn.Module,
        reference: ReferenceModel,
        inner: Callable[[str], str | None],
        choose: Callable[[int], tuple[Tensor, Tensor]],
        pair: Callable[[str, Tensor, Tensor, Tensor | None], Any],
        when: Callable[[], bool],
        on_error: Callable[[Exception], Any],
    ) -> None:
        self._reference, self._inner, self._choose = reference, inner, choose
        self._pair, self._when, self._on_error = pair, when, on_error
        self._images = 0
        self._index = self._weights = torch.empty(0)
        self._inputs: Any = None
        self._kept: PatchTokens = {}
        self._handles = [
            owner.register_forward_pre_hook(Hook(self._begin), with_kwargs=True),
            owner.register_forward_hook(Hook(self._end)),
        ]

    def _begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs = None
        if torch.compiler.is_compiling() or not self._when():
            return
        self._images = next((len(x) for x in _tensors((args, kwargs)) if x.ndim), 0)
        index, self._weights = self._choose(self._images)
        self._index, self._kept = index, {}
        self._inputs = _selected((args, kwargs), index, self._images)

    def keep(self, name: str, tokens: Tensor) -> bool:
        """Take the tokens of a layer for the comparison; False where they are not of this pass."""
        if self._inputs is None or self._inner(name) is None or len(tokens) != self._images:
            return False
        if len(self._index):
            chosen = tokens[self._index.to(tokens.device)]
            self._kept.setdefault(name, []).append(chosen)
        return True

    def _end(self, *_: Any) -> None:
        if self._inputs is None or torch.compiler.is_compiling():
            return
        (args, kwargs), kept = self._inputs, self._kept
        self._inputs, self._kept = None, {}
        if not kept:
            return
        found: PatchTokens = {}
        try:
            found = self._reference(*args, **kwargs)
        except Exception as error:  # whatever the reference raises
            self._on_error(error)
        for name, calls in kept.items():
            others: list[Tensor | None] = [*found.get(self._inner(name) or "", [])]
            if [c.shape[:2] for c in calls] != [o.shape[:2] for o in others if o is not None]:
                others = [None] * len(calls)
            for tokens, other in zip(calls, others, strict=True):
                self._pair(name, tokens, self._weights, other)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._inputs, self._kept = None, {}


def check_apart(model: nn.Module, reference: nn.Module) -> None:
    """Raise a ValueError if a reference shares a module or a parameter with the model."""
    own = {id(m) for m in model.modules()} | {id(p) for p in model.parameters()}
    if any(id(x) in own for x in (*reference.modules(), *reference.parameters())):
        raise ValueError(
            "reference must be a model of its own, got a part of the model that is trained; give "
            "copy.deepcopy of it"
        )


def _tensors(inputs: Any) -> list[Tensor]:
    """All tensors among the arguments of a call, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (tuple, list)):
        return [x for part in inputs for x in _tensors(part)]
    return []


def _selected(inputs: Any, index: Tensor, images: int) -> Any:
    """The arguments of a call for some images of the batch."""
    if isinstance(inputs, Tensor):
        fits = inputs.ndim > 0 and len(inputs) == images
        return inputs.detach()[index.to(inputs.device)] if fits else inputs
    if isinstance(inputs, Mapping):
        return {key: _selected(value, index, images) for key, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(_selected(value, index, images) for value in inputs)
    return inputs
