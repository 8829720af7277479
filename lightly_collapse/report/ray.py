"""Collapse metrics of a Ray data set, as an aggregation: for all rows or by group."""

import pickle
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.embeddings_tables import vectors
from lightly_collapse.metrics import EmbeddingSketch

try:
    from ray.data.aggregate import AggregateFnV2
    from ray.data.block import Block, BlockAccessor
except ImportError as error:
    raise ImportError(
        "lightly_collapse.report.ray needs Ray: pip install 'lightly-collapse[ray]'"
    ) from error


class CollapseSketch(AggregateFnV2):  # type: ignore[type-arg, misc, unused-ignore]
    """The collapse metrics of a column of embeddings, for `Dataset.aggregate` and `groupby`.

    Every task sketches its block in O(D^2) memory; sketches merge exactly, so the result is that
    of all rows on one machine, to rounding in float64, however they are partitioned. Ray hands an
    aggregation one column, without row numbers: the sample of the neighbour measures is drawn by a
    hash of the embeddings, and equal rows are all in it or none.

    Args:
        column: of the embeddings: lists or tensors of one width.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of the sample.
        name: of the result's column.

    Returns:
        A dictionary of the values of `lightly_collapse.metrics.Reading.scalars`; nan where one
        cannot be computed.

    Examples:
        >>> import ray  # doctest: +SKIP
        >>> ds = ray.data.read_parquet("embeddings/")  # doctest: +SKIP
        >>> ds.aggregate(CollapseSketch("embedding"))["collapse"]["rankme"]  # doctest: +SKIP
        >>> ds.groupby("source").aggregate(CollapseSketch("embedding"))  # doctest: +SKIP
    """

    def __init__(
        self,
        column: str,
        *,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 5000,
        seed: int = 0,
        name: str = "collapse",
    ) -> None:
        EmbeddingSketch(rtol, lid_k, lid_size, seed)  # raises where one is out of range
        self._column = column
        self._settings = (rtol, lid_k, lid_size, seed)
        super().__init__(name, zero_factory=self._zero, on=column, ignore_nulls=False)

    def _zero(self) -> bytes:
        return pickle.dumps(EmbeddingSketch(*self._settings))

    @override
    def aggregate_block(self, block: Block) -> bytes:
        """The sketch of one block."""
        sketch = EmbeddingSketch(*self._settings)
        table = BlockAccessor.for_block(block).to_arrow()
        for chunk in table.column(self._column).chunks:
            rows = torch.from_numpy(np.array(_matrix(chunk, self._column)))
            if len(rows):
                sketch.update(rows)
        return pickle.dumps(sketch)

    @override
    def combine(self, current_accumulator: bytes, new: bytes) -> bytes:
        """Both sketches as one."""
        sketch: EmbeddingSketch = pickle.loads(current_accumulator)
        sketch.merge(pickle.loads(new))
        return pickle.dumps(sketch)

    @override
    def finalize(  # type: ignore[override, unused-ignore]
        self, accumulator: bytes
    ) -> dict[str, float]:
        """The values of the sketch."""
        return dict(pickle.loads(accumulator).compute().scalars)


def _matrix(column: Any, name: str) -> Any:
    """A chunk of an Arrow column of lists, or of Ray's tensors, as (rows, dimensions)."""
    storage = getattr(column, "storage", column)
    return vectors(storage, name, "the data set")
