"""Passes of images through a model: its representations, with its layers hooked or not."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.metrics import FeatureHooks
from lightly_collapse.metrics.channels import channel_axis
from lightly_collapse.metrics.dense_collector import DenseCollector
from lightly_collapse.metrics.feature_hooks import PATCH, plain_name
from lightly_collapse.metrics.features import Tokens, dinov2_tokens, feature_rows, first_tensor
from lightly_collapse.metrics.prefix_tokens import PrefixTokens, prefix_tokens

OUTPUT, EMBEDDING = "output", "embedding"
"""Names of the layers that are the model's output and what the loss acts on."""

_IMAGE_KEYS = ("pixel_values", "image", "images")


class EmptyDataError(ValueError):
    """A dataloader gave no batch."""


class FeaturePass:
    """The passes of the data through the model, its layers hooked in the first."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        needs_output: bool,
        take: Callable[[str, Tensor], None],
        head: Callable[[Tensor], Tensor] | None,
        tokens: Tokens,
        channels: int | Mapping[str, int] | None,
        reference: nn.Module | None = None,
        begin: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._model, self._layers, self._take, self._head = model, layers, take, head
        self._on_batch = begin
        self._tokens, self._channels, self._reference = tokens, channels, reference
        self._needs_output = needs_output or not layers
        self._dense: DenseCollector | None = None

    def dense_totals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """The sums of the dense measures of the layers of patch tokens, and those of weights."""
        totals = {} if self._dense is None else self._dense.totals()
        return {_reported(layer): values for layer, values in totals.items()}

    def _begin(self, start: int, images: int) -> None:
        self._on_batch(start, images)
        if self._dense is not None:
            self._dense.begin(start)

    def _hooked(self) -> list[FeatureHooks | DenseCollector]:
        """Hooks on the layers, and on the model for the patch tokens of its output."""
        given = self._channels
        hooks: list[FeatureHooks | DenseCollector] = []
        if self._layers:
            arguments = (self._model, self._layers, self._take, self._tokens, given)
            hooks.append(FeatureHooks(*arguments, dense=self._take_tokens))
        hooks.append(
            FeatureHooks(
                self._model,
                ("",),
                lambda *_: None,
                self._tokens,
                given.get(OUTPUT) if isinstance(given, Mapping) else given,
                on_error=lambda *_: None,  # the output is looked at again, and its errors raised
                dense=self._take_tokens,
            )
        )
        layers = [*self._layers, ""]
        if self._reference is not None:
            there = {plain_name(name) for name, _ in self._reference.named_modules()}
            layers = [n for n in layers if plain_name(n) in there]
        self._dense = DenseCollector(self._model, layers, self._reference, self._tokens)
        return [*hooks, self._dense]

    def _take_tokens(self, layer: str, tokens: Tensor) -> None:
        if self._dense is not None:
            self._dense.take(layer, tokens)

    def over(
        self,
        batches: Iterable[Any],
        device: torch.device,
        labelled: bool = False,
        number: Callable[[int], int] = lambda seen: seen,
    ) -> tuple[Tensor, Tensor]:
        """Measure all batches; with labels, the representations and labels, else nothing.

        Args:
            batches: of images.
            device: where to compute.
            labelled: whether they have labels that are wanted.
            number: of the next image, from the number of images that came before.
        """
        hooks = self._hooked()
        kept: list[tuple[Tensor, Tensor]] = []
        count = seen = 0
        try:
            for batch in batches:
                count += 1
                images = images_of(batch).to(device)
                self._begin(number(seen), len(images))
                seen += len(images)
                rows = self._representation(images, labelled, True)
                if rows is None:
                    continue
                self._take(OUTPUT, rows)
                if self._head is not None:
                    self._take(EMBEDDING, feature_rows(self._head(rows)))
                if labelled:
                    kept.append((rows.float().cpu(), _labels(batch, "dataloader")))
        finally:
            for hook in hooks:
                hook.remove()
        if not count:
            raise EmptyDataError("dataloader must give at least one batch, got none")
        return _together(kept) if labelled else (torch.empty(0), torch.empty(0))

    def labelled(self, batches: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
        """The representations and labels of training images."""
        kept = []
        for batch in batches:
            rows = self._representation(images_of(batch).to(device), True)
            assert rows is not None
            kept.append((rows.float().cpu(), _labels(batch, "train_dataloader")))
        if not kept:
            raise EmptyDataError("train_dataloader must give at least one batch, got none")
        return _together(kept)

    def _representation(
        self, images: Tensor, needed: bool, measured: bool = False
    ) -> Tensor | None:
        output = self._model(images)
        x = dinov2_tokens(output)
        if x is not None:
            axis, prefix = -1, PrefixTokens(1, True)
        else:
            try:
                x = first_tensor(output)
            except ValueError:
                if self._needs_output or needed:
                    raise
                return None
            axis, prefix = self._read(x)
        if self._tokens != "auto" or not prefix.has_class_token or axis not in (-1, 2):
            return feature_rows(x, self._tokens, axis, prefix=prefix)
        if measured and x.shape[1] > prefix.count:
            self._take(OUTPUT + PATCH, feature_rows(x, "patch", axis, prefix=prefix))
        return feature_rows(x, "cls", axis, prefix=prefix)

    def _read(self, x: Tensor) -> tuple[int, PrefixTokens]:
        """The axis of the channels in the model's output, and its prefix tokens."""
        given = self._channels
        axis = given.get(OUTPUT) if isinstance(given, Mapping) else given
        if axis is None:
            axis = channel_axis(self._model, x.shape)
        prefix = prefix_tokens(self._model, "", x.shape[1]) if x.ndim == 3 else PrefixTokens()
        return axis, prefix


def _reported(layer: str) -> str:
    """The name in the report of a hooked layer: the model itself is its output."""
    return OUTPUT + layer if layer in ("", PATCH) else layer


def representations(
    model: nn.Module, batches: Iterable[Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The representations of labelled images, as `measure` takes them of a model's output.

    Args:
        model: maps a batch of images to its representation; used in evaluation mode, and left in
            the mode it was in.
        batches: `(images, labels)`.
        device: where to compute.

    Returns:
        (n, d) float32 and (n,) int64, on the CPU.

    Raises:
        ValueError: if there is no batch, or one without labels.

    Examples:
        >>> batches = [(torch.rand(4, 3, 2, 2), torch.arange(4))] * 2
        >>> x, y = representations(nn.Flatten(), batches, torch.device("cpu"))
        >>> x.shape, y.shape
        (torch.Size([8, 12]), torch.Size([8]))
    """
    with evaluating(model, device):
        run = FeaturePass(model, [], True, lambda _, __: None, None, "auto", None)
        return run.labelled(batches, device)


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A model in evaluation mode on a device, without gradients; its modes are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval().to(device)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _together(kept: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([rows for rows, _ in kept]), torch.cat([labels for _, labels in kept])


def _labels(batch: Any, source: str) -> Tensor:
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if isinstance(batch, Mapping):
        labels = batch.get("labels", batch.get("label"))
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"{source} must give (images, labels) with integer labels for accuracies")
    return labels.cpu().long()


def images_of(batch: Any) -> Tensor:
    """The images in a batch: itself, its first entry, or that of a known key.

    Raises:
        ValueError: if there is no tensor.
    """
    while isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        key = next((key for key in _IMAGE_KEYS if key in batch), None)
        batch = batch[key] if key is not None else batch
    if not isinstance(batch, Tensor):
        raise ValueError(
            f"dataloader must give tensors, sequences that begin with one, or dictionaries with "
            f"{' or '.join(_IMAGE_KEYS)}, got {type(batch).__name__}"
        )
    return batch
