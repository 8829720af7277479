"""What is kept of a table of embeddings while its chunks pass: a state that merges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_collapse.io.embeddings import Chunk
from lightly_collapse.io.memory import require_memory
from lightly_collapse.metrics import EmbeddingSketch

_MOST_GROUPS = 256
_GROUP_BLOCKS = 10
_GROUP_BYTES = 2**25  # for the blocks of a group: of 647 dimensions at most
_NAMED = 5  # of the rows that were left out
_NO_GROUP = "(missing)"


@dataclass(frozen=True)
class SketchSettings:
    """The arguments of `EmbeddingSketch`."""

    rtol: float
    lid_k: int
    lid_size: int
    seed: int
    blocks: int

    def sketch(self, group: bool = False, block_bytes: int | None = None) -> EmbeddingSketch:
        """An empty sketch, with less memory for blocks and sample for a group."""
        size = min(self.lid_size, 1000) if group else self.lid_size
        k = min(self.lid_k, size - 1)
        blocks = min(self.blocks, _GROUP_BLOCKS) if group else self.blocks
        memory = _GROUP_BYTES if group else block_bytes
        return EmbeddingSketch(self.rtol, k, size, self.seed, blocks, memory)


class EmbeddingTotals:
    """The sketch of all rows and of each group, labels of the sample, and rows left out.

    Args:
        settings: of the sketches.

    Attributes:
        total: the sketch of all rows.
        groups: those of the groups, by name.
        left_out: the first few rows that hold NaN or inf, as (number, file).
        unlabelled: number of rows whose label is missing.
    """

    def __init__(self, settings: SketchSettings) -> None:
        self._settings = settings
        self.total = settings.sketch()
        self.groups: dict[str, EmbeddingSketch] = {}
        self.left_out: list[tuple[int, str]] = []
        self.unlabelled = 0
        self._width = 0
        self._label_draws = torch.zeros(0, dtype=torch.int64)
        self._labels = np.zeros(0, dtype=object)

    def update(self, chunk: Chunk) -> None:
        """Take in some rows.

        Raises:
            ValueError: if the width is another than before, or there are too many groups.
        """
        if not self._width:
            self._width = chunk.rows.shape[1]
            require_memory(24 * self._width**2, f"embeddings of {self._width} dimensions")
        finite = self.total.update(chunk.rows, chunk.numbers)
        if not finite.all():
            bad = chunk.numbers[~finite][:_NAMED].tolist()
            self._keep_left_out([(n, chunk.file) for n in bad])
        if chunk.labels is not None:
            draws = self.total.draws(chunk.rows[finite], chunk.numbers[finite])
            labels = _texts(chunk.labels)[finite.numpy()]
            self.unlabelled += int(_are_missing(labels).sum())
            self._keep_labels([draws], [labels])
        if chunk.groups is not None:
            self._update_groups(chunk, chunk.groups)

    def merge(self, other: "EmbeddingTotals") -> None:
        """Take in what another one saw.

        Raises:
            ValueError: as `update`.
        """
        self.total.merge(other.total)
        for name, sketch in other.groups.items():
            self._group(name).merge(sketch)
        self.unlabelled += other.unlabelled
        self._keep_left_out(other.left_out)
        self._keep_labels([other._label_draws], [other._labels])

    def labelled_sample(self) -> tuple[Tensor, Tensor, list[str]]:
        """The sampled rows that have a label, the index of each one's label, and the labels."""
        known = torch.from_numpy(~_are_missing(self._labels))
        names = sorted({label for label in self._labels if label is not None})
        index = {name: i for i, name in enumerate(names)}
        codes = [index[label] for label in self._labels if label is not None]
        return self.total.sample[known], torch.tensor(codes, dtype=torch.int64), names

    def _update_groups(self, chunk: Chunk, groups: np.ndarray[Any, Any]) -> None:
        texts = _texts(groups)
        texts[_are_missing(texts)] = _NO_GROUP
        names, members = np.unique(texts.astype(str), return_inverse=True)
        for i, name in enumerate(names):
            mine = torch.from_numpy(members == i)
            self._group(str(name)).update(chunk.rows[mine], chunk.numbers[mine])

    def _group(self, name: str) -> EmbeddingSketch:
        if name not in self.groups:
            if len(self.groups) == _MOST_GROUPS:
                raise ValueError(
                    f"group_by must name a column of at most {_MOST_GROUPS} different values, got "
                    f"more, such as {', '.join(list(self.groups)[:3])}"
                )
            self.groups[name] = self._settings.sketch(group=True)
        return self.groups[name]

    def _keep_left_out(self, more: Sequence[tuple[int, str]]) -> None:
        self.left_out = sorted([*self.left_out, *more])[:_NAMED]

    def _keep_labels(self, draws: Sequence[Tensor], labels: Sequence[np.ndarray[Any, Any]]) -> None:
        every = torch.cat([self._label_draws, *draws])
        self._label_draws, order = every.sort(stable=True)
        order = order[: self._settings.lid_size]
        self._label_draws = self._label_draws[: self._settings.lid_size].clone()
        self._labels = np.concatenate([self._labels, *labels])[order.numpy()]


def _texts(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels as text, None where one is missing."""
    texts = values.astype(str).astype(object)
    if values.dtype.kind in "fO":
        missing = (v is None or (isinstance(v, float) and math.isnan(v)) for v in values)
        texts[np.fromiter(missing, dtype=bool, count=len(values))] = None
    return texts


def _are_missing(texts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.fromiter((t is None for t in texts), dtype=bool, count=len(texts))
