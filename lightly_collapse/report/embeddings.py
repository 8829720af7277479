"""Measure the collapse of embeddings: an array, a data set, or files of any size."""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.embeddings import Chunk, EmbeddingSource, as_rows
from lightly_collapse.metrics import EmbeddingSketch, NeighborDistances
from lightly_collapse.report.accuracy import knn_accuracy, linear_accuracy
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.embedding_totals import EmbeddingTotals, SketchSettings
from lightly_collapse.report.layer_record import record_of
from lightly_collapse.report.progress import with_progress
from lightly_collapse.report.records import LayerRecord

Engine = Literal["local", "ray"]
Neighbors = Literal["sample", "all"]

_ENGINES = ("local", "ray")
_NEIGHBORS = ("sample", "all")
_BATCH = 8192  # rows of an array or a data set at a time


def measure_embeddings(
    source: str | os.PathLike[str] | Tensor | np.ndarray[Any, Any] | Iterable[Any],
    *,
    column: str | None = None,
    labels_column: str | None = None,
    group_by: str | None = None,
    neighbors: Neighbors = "sample",
    engine: Engine = "local",
    address: str | None = None,
    rtol: float = DEFAULT_RTOL,
    lid_k: int = DEFAULT_LID_K,
    lid_size: int = 5000,
    seed: int = 0,
    blocks: int = 20,
    name: str | None = None,
    progress: bool = False,
) -> CollapseReport:
    """Measure embeddings in one pass and bounded memory.

    Rows are sampled, and assigned to the blocks of the intervals, by a hash of their number in the
    source, so the result is the same for any engine and number of workers.

    Args:
        source: path, folder, glob or URL of files, see `lightly_collapse.io.embeddings`; an (n, d)
            tensor or array; or an iterable, such as a `torch.utils.data.Dataset`, of rows or of
            tuples that begin with one.
        column: of the embeddings in the files, where it is not the only one.
        labels_column: of class labels: the report then has the accuracies of a kNN vote and of
            logistic regression on one half of the sampled rows, trained on the other.
        group_by: column of groups, such as a class or a source: each is measured by itself too.
        neighbors: where the neighbours of the sampled rows are sought for mLID: in the sample, or
            in all rows, exactly, in a second pass.
        engine: `local`, or `ray` for the workers of a Ray cluster.
        address: of the Ray cluster; by default the running one or a new one on this machine.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of the sample and the blocks.
        blocks: for the jackknife of the intervals; 1 for none.
        name: of the embeddings in tables and figures.
        progress: show a progress bar with rows per second on standard error.

    Returns:
        The report; its layers are `output`, all rows, and the groups.

    Raises:
        ValueError: if the source holds no embeddings, a file is damaged, rows differ in width or an
            argument is out of range.
        ImportError: if a package that the format or engine needs is not installed.

    Examples:
        >>> z = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> report = measure_embeddings(z)
        >>> low, high = report.output.intervals["effective_rank"]
        >>> report.output.dimensions, low < 8.01, high > 7.9
        (8, True, True)
    """
    if engine not in _ENGINES:
        raise ValueError(f"engine must be one of {', '.join(_ENGINES)}, got {engine!r}")
    if neighbors not in _NEIGHBORS:
        raise ValueError(f"neighbors must be one of {', '.join(_NEIGHBORS)}, got {neighbors!r}")
    settings = SketchSettings(rtol, lid_k, lid_size, seed, blocks)
    settings.sketch()  # raises where one is out of range
    files = None
    if isinstance(source, (str, os.PathLike)):
        files = EmbeddingSource(source, column, labels_column, group_by)
    elif labels_column is not None or group_by is not None or column is not None:
        raise ValueError("column, labels_column and group_by need a source of files with columns")
    near = None
    if engine == "ray":
        from lightly_collapse.report.ray_engine import RayEngine  # noqa: PLC0415

        if files is None:
            raise ValueError(f"engine ray needs a source of files, got {type(source).__name__}")
        cluster = RayEngine(files, address, progress)
        totals = cluster.totals(settings)
        if neighbors == "all":
            near = cluster.neighbors(totals.total.sample, _k(totals.total))
    else:
        totals = EmbeddingTotals(settings)
        chunks = _chunks_of(files if files is not None else source)
        for chunk in with_progress(chunks(), progress, "measuring", _size(source)):
            totals.update(chunk)
        if neighbors == "all" and totals.total.rows > 1:
            near = NeighborDistances(totals.total.sample, _k(totals.total))
            for chunk in with_progress(chunks(), progress, "neighbours", _size(source)):
                near.update(chunk.rows)
    if totals.total.rows < 2:
        what = (
            "at least one finite row, got none"
            if not totals.total.rows
            else "two finite rows, got one"
        )
        raise ValueError(f"source must hold {what} ({totals.total.dropped} held NaN or inf)")
    layers = [_record("output", totals.total, near)]
    groups = sorted(totals.groups.items())
    layers += [_record(f"{group_by}={group}", sketch) for group, sketch in groups]
    return CollapseReport(
        name=name or (os.path.basename(files.source.rstrip("/")) if files else "embeddings"),
        layers=layers,
        weights=[],
        settings={
            "collapse_rtol": rtol,
            "lid_k": lid_k,
            "lid_size": lid_size,
            "neighbors": neighbors,
            "blocks": blocks,
            "seed": seed,
        },
        source={} if files is None else {"embeddings": files.source, "files": len(files.files)},
        notes=_notes(totals, layers, neighbors),
        accuracy={} if labels_column is None else _accuracy(totals),
    )


def _accuracy(totals: EmbeddingTotals) -> dict[str, float]:
    rows, labels, names = totals.labelled_sample()
    # The rows come by ascending draw: every other one is a random half.
    halves = (rows[::2], labels[::2], rows[1::2], labels[1::2])
    if len(names) < 2 or len(set(halves[1].tolist())) < 2:
        raise ValueError(
            f"labels_column must hold two classes or more in {len(rows)} sampled rows, got "
            f"{', '.join(names[:3]) or 'none'}"
        )
    return {"knn": knn_accuracy(*halves), "linear": linear_accuracy(*halves)}


def _k(sketch: EmbeddingSketch) -> int:
    return max(1, min(sketch.lid_k, sketch.rows - 1))


def _record(
    name: str, sketch: EmbeddingSketch, near: NeighborDistances | None = None
) -> LayerRecord:
    return record_of(name, sketch.compute(), sketch.dimensions, sketch, near)


def _notes(totals: EmbeddingTotals, layers: list[LayerRecord], neighbors: str) -> list[str]:
    notes = []
    notes += layers[0].doubts()
    if totals.total.dropped:
        named = ", ".join(f"{n} in {file}" for n, file in totals.left_out)
        more = totals.total.dropped - len(totals.left_out)
        notes.append(
            f"{totals.total.dropped} rows held NaN or inf, or were missing, and were left out: "
            f"row {named}{f' and {more} more' if more > 0 else ''}."
        )
    if totals.unlabelled:
        have = "row has" if totals.unlabelled == 1 else "rows have"
        notes.append(f"{totals.unlabelled} {have} no label and no part in the accuracies.")
    if neighbors == "all":
        notes.append("The neighbours for mLID were sought in all rows, not in the sample.")
    return notes


def _chunks_of(source: Any) -> Callable[[], Iterator[Chunk]]:
    """A function that begins a pass over the source."""
    if isinstance(source, EmbeddingSource):
        return source.chunks
    if isinstance(source, (Tensor, np.ndarray)):
        if source.ndim != 2 or 0 in source.shape:
            raise ValueError(f"source must be (rows, dimensions), got shape {tuple(source.shape)}")
        return lambda: _cut(source)
    if isinstance(source, Sized) and hasattr(source, "__getitem__"):
        return lambda: _collected(source[i] for i in range(len(source)))
    if iter(source) is source:
        raise ValueError("source must be a sequence, data set or loader, got an iterator")
    return lambda: _collected(source)


def _cut(z: Tensor | np.ndarray[Any, Any]) -> Iterator[Chunk]:
    for at in range(0, len(z), _BATCH):
        rows = as_rows(z[at : at + _BATCH], "source").detach()
        yield Chunk(rows, torch.arange(at, at + len(rows)), None, None, "the array")


def _collected(items: Iterable[Any]) -> Iterator[Chunk]:
    """Items that are rows, or batches of them, or begin with one, as chunks."""
    kept: list[Tensor] = []
    first, count = 0, 0
    for item in items:
        z = torch.as_tensor(item[0] if isinstance(item, (tuple, list)) else item).detach()
        if z.ndim not in (1, 2):
            raise ValueError(f"source must give rows or batches of rows, got {tuple(z.shape)}")
        kept.append(as_rows(z.reshape(-1, z.shape[-1]), "source"))
        count += len(kept[-1])
        if kept[-1].shape[1] != kept[0].shape[1]:
            widths = f"{kept[0].shape[1]} and {kept[-1].shape[1]}"
            raise ValueError(f"source must give rows of one width, got {widths}")
        if count >= _BATCH:
            yield Chunk(torch.cat(kept), torch.arange(first, first + count), None, None, "the data")
            kept, first, count = [], first + count, 0
    if kept:
        yield Chunk(torch.cat(kept), torch.arange(first, first + count), None, None, "the data")


def _size(source: Any) -> int | None:
    """Number of rows where it is known without looking at them."""
    return len(source) if isinstance(source, (Tensor, np.ndarray)) else None
