"""Progress bars of rows, with their rows per second, and of batches."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typing_extensions import override

from lightly_collapse.io.embeddings import Chunk


class _RowsPerSecond(ProgressColumn):
    @override
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{int(task.completed):,} rows" + (f", {speed:,.0f}/s" if speed else ""))


def row_progress(shown: bool, what: str, total: int | None) -> tuple[Progress, Any]:
    """A progress bar of rows on standard error, and its task."""
    columns = (TextColumn(what), BarColumn(), _RowsPerSecond(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
    return bar, bar.add_task(what, total=total)


def with_progress(
    chunks: Iterator[Chunk], shown: bool, what: str, total: int | None
) -> Iterator[Chunk]:
    """The chunks, with a progress bar while they are used."""
    bar, task = row_progress(shown, what, total)
    with bar:
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk.rows))


def batch_progress(shown: bool, total: int | None, what: str = "measuring") -> tuple[Progress, Any]:
    """A progress bar of batches on standard error, and its task."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
    return bar, bar.add_task(what, total=total)


def with_batch_progress(
    batches: Iterable[Any], shown: bool, what: str = "measuring"
) -> Iterator[Any]:
    """The batches, with a progress bar while they are used."""
    total = len(batches) if isinstance(batches, Sized) else None
    bar, task = batch_progress(shown, total, what)
    with bar:
        for batch in batches:
            yield batch
            bar.advance(task)
