"""Embedding files measured by the tasks of a Ray cluster; their states are merged as they come."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightly_collapse.io.cluster import connect, remote_results
from lightly_collapse.io.embeddings import EmbeddingSource, Piece
from lightly_collapse.io.embeddings_block import needed
from lightly_collapse.metrics import NeighborDistances
from lightly_collapse.report.embedding_totals import EmbeddingTotals, SketchSettings
from lightly_collapse.report.progress import row_progress

_ROWS = 2**18  # of a task at most


class RayEngine:
    """Passes over a source of files by Ray tasks.

    A task reads its own rows and returns a state of bounded size, which the driver merges into one:
    the driver's memory does not depend on the number of rows. A task whose worker died is run
    again, and its first attempt leaves nothing behind.

    Args:
        source: of files that every node can read: shared storage or a URL.
        address: of the cluster; by default the running one or a new one on this machine.
        progress: show a progress bar on standard error.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at the address.
    """

    def __init__(self, source: EmbeddingSource, address: str | None, progress: bool) -> None:
        ray = connect(address)
        self._ray = ray
        self._source = source
        self._progress = progress
        # Smaller pieces where there are few rows, so that no worker stands idle.
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        rows = max(1, min(_ROWS, -(-source.rows // (4 * workers))))
        self._pieces = source.pieces(rows)
        self._in_flight = 2 * workers

    def totals(self, settings: SketchSettings) -> EmbeddingTotals:
        """The first pass: sketches, samples and groups.

        Raises:
            ValueError: as `EmbeddingTotals.update`, or if a file is damaged.
        """
        result = EmbeddingTotals(settings)
        self._merge_into(result, _total, settings, "measuring")
        return result

    def neighbors(self, queries: Tensor, k: int) -> NeighborDistances:
        """The second pass: the nearest rows of the queries.

        Raises:
            ValueError: if a file is damaged.
        """
        shared = self._ray.put(queries)
        result = NeighborDistances(queries, k)
        self._merge_into(result, _near, (shared, k), "neighbours")
        return result

    def _merge_into(self, result: Any, task: Callable[..., Any], argument: Any, what: str) -> None:
        bar, shown = row_progress(self._progress, what, self._source.rows)
        source = self._ray.put(self._source)
        calls = ((source, piece, argument) for piece in self._pieces)
        with bar:
            for (_, piece, _), state in remote_results(
                self._ray, task, calls, at_once=self._in_flight
            ):
                result.merge(state)
                bar.advance(shown, piece.stop - piece.start)


def _total(source: EmbeddingSource, piece: Piece, settings: SketchSettings) -> EmbeddingTotals:
    totals = EmbeddingTotals(settings)
    for chunk in source.chunks([piece]):
        totals.update(chunk)
    return totals


def _near(source: EmbeddingSource, piece: Piece, argument: Sequence[Any]) -> NeighborDistances:
    shared, k = argument
    queries = needed("ray").get(shared)
    near = NeighborDistances(queries, k)
    for chunk in source.chunks([piece]):
        near.update(chunk.rows)
    near.queries = queries[:0]  # the driver has them
    return near
