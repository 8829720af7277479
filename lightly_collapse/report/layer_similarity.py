"""Linear CKA of the layers of two models, from one pass of the same images through both."""

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.io.memory import require_memory
from lightly_collapse.metrics import CKA, FeatureHooks
from lightly_collapse.metrics.feature_hooks import find_layers
from lightly_collapse.report.feature_pass import OUTPUT, EmptyDataError, evaluating, images_of
from lightly_collapse.report.measure import stages
from lightly_collapse.report.records import rounded
from lightly_collapse.report.similarity_record import LayerSimilarity

_LEAST_IMAGES = 4  # of the unbiased estimate
_BLOCK = 1024  # rows that wait: the cost of an update is that of its matrices, not of its rows


def layer_similarity(
    model_a: nn.Module,
    model_b: nn.Module,
    dataloader: Iterable[Any],
    dataloader_b: Iterable[Any] | None = None,
    *,
    layers_a: Sequence[str] | None = None,
    layers_b: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> LayerSimilarity:
    """Compare every layer of a model with every layer of another on the same images.

    Debiased linear CKA, `functional.cka`, of one row an image: feature maps are averaged over their
    positions and sequences over their patches. The images pass once; of each pair of layers of
    widths d and e a matrix of (d + e)^2 float64 numbers is kept, whatever the number of images.

    Args:
        model_a: maps a batch of images to its representation; measured in evaluation mode and left
            in the mode it was in.
        model_b: the other, or the same.
        dataloader: gives batches as for `measure`, at least four images in all.
        dataloader_b: gives the same images in batches of the same size, prepared for `model_b`; by
            default it sees those of `dataloader`.
        layers_a: names of layers as in `model_a.named_modules()`, and `output` for what it returns;
            by default its stages and `output`.
        layers_b: the same for `model_b`.
        device: where the models run; each where it is by default.
        names: what the models are called.

    Returns:
        The map.

    Raises:
        ValueError: if a layer does not exist, is not called once in a forward pass, or does not
            give one finite row an image of one width; if there are fewer than four images, the
            batches of both loaders differ in size, or the matrices do not fit into memory.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019,
    arXiv 1905.00414; Nguyen et al., ICLR 2021, arXiv 2010.15327 (the unbiased estimate).

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> found = layer_similarity(encoder, encoder, [torch.randn(50, 6)], layers_a=["0", "2"])
        >>> found.layers_a, found.layers_b
        (['0', '2'], ['0', '2', 'output'])
        >>> found.value("2", "output")
        1.0
    """
    models = (model_a, model_b)
    taps = [
        _Layers(m, given, f"layers_{side}")
        for m, given, side in zip(models, (layers_a, layers_b), "ab", strict=True)
    ]
    places = [_place(m, device) for m in models]
    pairs = _Pairs()
    with evaluating(model_a, places[0]), evaluating(model_b, places[1]):
        for batch, batch_b in _batches(dataloader, dataloader_b):
            images = (images_of(batch), images_of(batch_b))
            if len(images[0]) != len(images[1]):
                raise ValueError(
                    "dataloader_b must give the images of dataloader in batches of the same size, "
                    f"got {len(images[1])} beside {len(images[0])}"
                )
            pairs.update(
                taps[0].features(images[0].to(places[0])),
                taps[1].features(images[1].to(places[1])),
            )
    if not pairs.images:
        raise EmptyDataError("dataloader must give at least one batch, got none")
    if pairs.images < _LEAST_IMAGES:
        raise ValueError(
            f"dataloader must give at least {_LEAST_IMAGES} images for CKA, got {pairs.images}"
        )
    return LayerSimilarity(names, taps[0].names, taps[1].names, pairs.compute(), pairs.images)


class _Pairs:
    """CKA of all pairs of layers; rows wait until there is a block of them."""

    def __init__(self) -> None:
        self.images = 0
        self._metrics: list[list[CKA]] = []
        self._waiting: list[tuple[list[Tensor], list[Tensor]]] = []
        self._rows = 0

    def update(self, a: list[Tensor], b: list[Tensor]) -> None:
        """Take in the rows of one batch, by layer."""
        if not self.images:
            entries = sum((x.shape[1] + y.shape[1]) ** 2 for x in a for y in b)
            require_memory(8 * entries, f"layers_a and layers_b, {len(a)} x {len(b)} pairs,")
            self._metrics = [[CKA() for _ in b] for _ in a]
        self._waiting.append((a, b))
        self._rows += len(a[0])
        self.images += len(a[0])
        if self._rows >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        a, b = (
            [torch.cat(rows) for rows in zip(*side, strict=True)]
            for side in zip(*self._waiting, strict=True)
        )
        for x, row in zip(a, self._metrics, strict=True):
            for y, metric in zip(b, row, strict=True):
                metric.update(x, y)
        self._waiting, self._rows = [], 0

    def compute(self) -> list[list[float | None]]:
        """A row for each layer of the first model."""
        self._flush()
        return [[_number(metric.compute()) for metric in row] for row in self._metrics]


def _batches(first: Iterable[Any], second: Iterable[Any] | None) -> Iterable[tuple[Any, Any]]:
    if second is None:
        yield from ((batch, batch) for batch in first)
        return
    end = object()
    for one, other in zip_longest(first, second, fillvalue=end):
        if one is end or other is end:
            raise ValueError("dataloader_b must give as many batches as dataloader")
        yield one, other


class _Layers:
    """Layers of a model, and their features of a batch, one row an image."""

    def __init__(self, model: nn.Module, given: Sequence[str] | None, argument: str) -> None:
        if given is not None and (
            isinstance(given, str) or not given or len(set(given)) < len(given)
        ):
            raise ValueError(f"{argument} must be different names of layers, got {given!r}")
        self.names = [*stages(model), OUTPUT] if given is None else list(given)
        self._model, self._argument = model, argument
        self._optional = given is None  # stages that are not called are left out
        find_layers(model, [_module_name(model, name) for name in self.names])

    def features(self, images: Tensor) -> list[Tensor]:
        """The rows of one batch, float32 on the CPU, by layer."""
        calls: dict[str, list[Tensor]] = {}
        hooked = {_module_name(self._model, name): name for name in self.names}

        def take(name: str, rows: Tensor) -> None:
            # A copy: what follows in the model may change its input in place.
            copy = rows.to("cpu", torch.float32, copy=True)
            calls.setdefault(hooked[name], []).append(copy)

        with FeatureHooks(self._model, list(hooked), take, "mean") as hooks:
            self._model(images)
            hooks.flush()
        if self._optional:
            self.names, self._optional = [n for n in self.names if n in calls], False
        return [self._rows(name, calls.get(name, []), len(images)) for name in self.names]

    def _rows(self, name: str, calls: Sequence[Tensor], images: int) -> Tensor:
        if len(calls) != 1 or len(calls[0]) != images:
            count = f"{len(calls)} calls" if len(calls) != 1 else f"{len(calls[0])} rows"
            raise ValueError(
                f"{self._argument} must be called once and give one row an image, got {count} of "
                f"{name!r} for {images} images"
            )
        if not calls[0].isfinite().all():
            raise ValueError(
                f"{self._argument} must give finite features, got NaN or inf in {name!r}"
            )
        return calls[0]


def _module_name(model: nn.Module, layer: str) -> str:
    """The name in `named_modules()`: the model itself is what gives the output."""
    own = dict(model.named_modules())
    return "" if layer == OUTPUT and layer not in own else layer


def _number(value: Tensor) -> float | None:
    number = float(value)
    return rounded(number) if math.isfinite(number) else None


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    own = next(model.parameters(), torch.empty(0)).device
    return own if device is None else torch.device(device)
