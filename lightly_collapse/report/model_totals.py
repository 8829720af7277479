"""What is kept of a model's features while its images pass: a state that merges."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows

from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.metrics.dense import means
from lightly_collapse.report.embedding_totals import SketchSettings
from lightly_collapse.report.feature_pass import OUTPUT
from lightly_collapse.report.layer_record import record_of
from lightly_collapse.report.records import LayerRecord, finite

_HIDDEN_BYTES = 2**29  # for the blocks of all hidden layers together
_CALL = 40  # bits of a row's number: which call of the layer in a forward pass it is of


class ModelTotals:
    """A sketch of every measured layer, and the sums of its dense measures.

    A row is known by its image's number and its place in the image, so that the sample, and the
    block of each row, are the same for any batch size and any sharding of the images; all rows of
    an image are in one block, since they are not independent.

    Args:
        settings: of the sketches.
        layers: number of layers beside the output at most, which share the memory for blocks.
        normalize: divide every row by its norm first.
    """

    def __init__(self, settings: SketchSettings, layers: int, normalize: bool = False) -> None:
        self._settings, self._layers, self._normalize = settings, layers, normalize
        self.sketches: dict[str, EmbeddingSketch] = {}
        self._images: dict[str, int] = {}
        self._dense: dict[str, dict[str, tuple[float, float]]] = {}
        self._start, self._size = 0, 0
        self._calls: dict[str, int] = {}

    def begin(self, start: int, images: int) -> None:
        """A batch follows: `images` images, the first of which has the number `start`."""
        self._start, self._size = start, images
        self._calls = {}

    def take(self, layer: str, rows: Tensor) -> None:
        """Take in the rows that a layer gave for the batch, the same number for every image.

        Where they are no multiple of the images, they are known by their entries.
        """
        if layer not in self.sketches:
            memory = None if layer == OUTPUT else _HIDDEN_BYTES // max(self._layers, 1)
            self.sketches[layer] = self._settings.sketch(block_bytes=memory)
            self._images[layer] = 0
        call = self._calls.get(layer, 0)
        self._calls[layer] = call + 1
        self._images[layer] += 0 if call else self._size
        rows = unit_rows(rows.float(), dim=1) if self._normalize else rows
        numbers = clusters = None
        if len(rows) % self._size == 0:
            each = len(rows) // self._size
            numbers = torch.arange(len(rows), device=rows.device) + self._start * each
            clusters = None if each == 1 and not call else numbers // each
            numbers = numbers + (call << _CALL)
        self.sketches[layer].update(rows, numbers, clusters)

    def add_dense(self, totals: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
        """Add weighted sums of the dense measures, and the sums of weights, by layer."""
        for layer, values in totals.items():
            mine = self._dense.setdefault(layer, {})
            for name, (total, weight) in values.items():
                old = mine.get(name, (0.0, 0.0))
                mine[name] = (old[0] + total, old[1] + weight)

    def merge(self, other: "ModelTotals") -> None:
        """Take in what another one saw of other images.

        Raises:
            ValueError: if a layer has another width there.
        """
        for layer, sketch in other.sketches.items():
            if layer in self.sketches:
                self.sketches[layer].merge(sketch)
            else:
                self.sketches[layer] = sketch
            self._images[layer] = self._images.get(layer, 0) + other._images[layer]
        self.add_dense(other._dense)

    def to(self, device: torch.device) -> "ModelTotals":
        """Move the sketches to a device; returns itself."""
        for sketch in self.sketches.values():
            sketch.to(device)
        return self

    def has_gram_drift(self) -> bool:
        """Whether a layer was compared with a reference."""
        return any("gram_drift" in means([values]) for values in self._dense.values())

    def record(self, layer: str, danco: bool = False) -> LayerRecord:
        """What a report says of a layer.

        Args:
            layer: one that gave rows.
            danco: compute the DANCo intrinsic dimension of the sampled rows too.
        """
        sketch = self.sketches[layer]
        reading = sketch.compute(danco)
        record = record_of(
            layer, reading, sketch.dimensions, sketch, independent=self._images[layer]
        )
        dense = finite(means([self._dense.get(layer, {})]))
        return replace(record, scalars=record.scalars | dense)
