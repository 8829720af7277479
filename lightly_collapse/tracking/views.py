"""Representations with their gradient, from a hook, for a loss that `forward` does not return."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse._hooks import Hook
from lightly_collapse.metrics.channels import ChannelAxis
from lightly_collapse.metrics.feature_hooks import find_layers
from lightly_collapse.metrics.features import Tokens, check_tokens, feature_rows
from lightly_collapse.metrics.prefix_tokens import PrefixTokens, prefix_tokens
from lightly_collapse.tracking.collector import unwrapped


class RepresentationHook:
    """Keeps what a layer gives in training, view by view, with its gradient.

    Most models for self-supervised learning return the embedding; `LDRegularizer` acts on the
    representation before it. This hook takes it without a change to `forward`: pass the views to
    the regularizer before the backward pass.

    Args:
        model: the model that is trained.
        layer: name of the layer, as in its `named_modules()`.
        tokens: of a sequence: `cls`, `mean` of the patches, or `auto`: the class token where there
            is one, else the mean. Feature maps are averaged over their positions.
        channels: the axis of the channels, where it cannot be told from the layer.

    Raises:
        ValueError: if the layer does not exist or `tokens` gives more than a row a sample; in the
            forward pass if the output cannot be made rows.

    Examples:
        >>> from lightly_collapse.loss import LDRegularizer
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> regularizer = LDRegularizer(weight=0.01, k=8)
        >>> with RepresentationHook(model, "1") as representation:
        ...     z0, z1 = model(torch.randn(16, 4)), model(torch.randn(16, 4))
        ...     loss = (z0 - z1).square().mean() + regularizer(*representation.views())
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str = "backbone",
        tokens: Tokens = "auto",
        channels: ChannelAxis = "auto",
    ) -> None:
        check_tokens(tokens)
        if tokens in ("patch", "all"):
            raise ValueError(
                f"tokens must give one row a sample: auto, cls or mean, got {tokens!r}"
            )
        self._model = unwrapped(model)
        self._tokens, self._channels = tokens, channels
        self._views: list[Tensor] = []
        module = find_layers(self._model, (layer,))[layer]
        self._path = next(name for name, m in self._model.named_modules() if m is module)
        self._handle = module.register_forward_hook(Hook(self._keep))

    def _keep(self, layer: nn.Module, _: Any, output: Any) -> None:
        # Without a gradient there is nothing to regularize: evaluation, or a teacher's pass.
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not torch.is_grad_enabled() or not self._model.training or again:
            return
        prefix = prefix_tokens(self._model, self._path)
        tokens = self._tokens
        if tokens == "auto":
            tokens = "cls" if self._has_class_token(output, prefix) else "mean"
        rows = feature_rows(
            output,
            tokens,
            self._channels,
            layer=layer,
            model=self._model,
            prefix=prefix,
            detach=False,
        )
        self._views.append(rows)

    @staticmethod
    def _has_class_token(output: Any, prefix: PrefixTokens) -> bool:
        return isinstance(output, Tensor) and output.ndim == 3 and prefix.has_class_token

    def views(self) -> list[Tensor]:
        """The (n, c) rows of every call since the last time, with their gradient.

        Returns:
            One tensor a call, in order. They are handed over: the hook keeps none.

        Raises:
            ValueError: if the layer was not called in training.
        """
        views, self._views = self._views, []
        if not views:
            raise ValueError("the layer must be called in training before views() is, it was not")
        return views

    def clear(self) -> None:
        """Drop the views, such as those of a step whose loss takes none."""
        self._views.clear()

    def close(self) -> None:
        """Remove the hook; more than once does no harm."""
        self._handle.remove()
        self._views.clear()

    def __enter__(self) -> "RepresentationHook":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
