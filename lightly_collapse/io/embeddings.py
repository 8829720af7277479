"""Embeddings in files: one pass over their rows in bounded memory, whatever the format.

A source is a path or fsspec URL of a file, a folder of them, or a glob; `{000..012}` counts. Its
files, in the order of their names, are one table: rows are numbered through all of them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_collapse.io import embeddings_arrays as arrays
from lightly_collapse.io import embeddings_tables as tables
from lightly_collapse.io.embeddings_block import (
    Block,
    Columns,
    EmbeddingFileError,
    check_numbers,
    reading,
)
from lightly_collapse.io.embeddings_files import extension, find_files

_Source = str | os.PathLike[str]
_FORMATS: dict[str, Any] = {
    ".npy": arrays.Npy,
    ".npz": arrays.Npz,
    ".pt": arrays.TorchFile,
    ".pth": arrays.TorchFile,
    ".safetensors": arrays.Safetensors,
    ".zarr": arrays.Zarr,
    ".parquet": tables.Parquet,
    ".lance": tables.Lance,
    ".tar": tables.WebDataset,
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class Chunk:
    """Some rows of a source.

    Attributes:
        rows: (n, D) embeddings in their floating dtype; a missing one is a row of NaN.
        numbers: (n,) int64 numbers of the rows in the source, from 0.
        labels: (n,) of the labels' column, if one was asked for.
        groups: (n,) of the groups' column, if one was asked for.
        file: where they come from.
    """

    rows: Tensor
    numbers: Tensor
    labels: np.ndarray[Any, Any] | None
    groups: np.ndarray[Any, Any] | None
    file: str


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of one file of a source; `first` is the number of the file's row 0."""

    file: str
    start: int
    stop: int
    first: int


class EmbeddingSource:
    """The rows of embedding files, read in chunks.

    Args:
        source: path or URL of a file (`.npy`, `.npz`, `.pt`, `.safetensors`, `.parquet`, `.zarr`,
            `.lance`, `.tar`), a folder or a glob of files of one of these formats; see
            `lightly_collapse.io.embeddings_files.find_files`.
        column: of the embeddings: a column of a table, an array of a file of several, the file
            extension within a WebDataset shard. By default the only one that holds vectors, or
            the one of them called embedding, embeddings, features, representation or z; what it is
            in the first file it must be in all.
        labels_column: of labels, if wanted.
        group_column: of groups, if wanted.

    Attributes:
        files: of the source, in order.

    Raises:
        ValueError: if there is no such file, the formats differ or are not known; while reading,
            if a column is missing, rows differ in width or a file is damaged.
        ImportError: if the package that reads the format is not installed.

    Examples:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "z.npy")
        >>> np.save(path, np.zeros((5, 3), dtype=np.float16))
        >>> source = EmbeddingSource(path)
        >>> [(chunk.rows.shape, chunk.numbers.tolist()) for chunk in source.chunks()]
        [(torch.Size([5, 3]), [0, 1, 2, 3, 4])]
    """

    def __init__(
        self,
        source: _Source,
        column: str | None = None,
        labels_column: str | None = None,
        group_column: str | None = None,
    ) -> None:
        self.source = os.fspath(source)
        self.files = find_files(self.source)
        self._wanted = Columns(column, labels_column, group_column)
        self._chosen: Columns | None = None
        self._starts: list[int] | None = None

    @property
    def rows(self) -> int:
        """Number of rows, from the files' headers; a tar archive is listed for it."""
        return self._offsets()[-1]

    def pieces(self, rows: int) -> list[Piece]:
        """The source cut into pieces to be read apart.

        Args:
            rows: of a piece at most. Formats that can only be read from the start, tar archives,
                are one piece a file.
        """
        starts = self._offsets()
        pieces = []
        for file, first, end in zip(self.files, starts, starts[1:], strict=False):
            step = rows if _reader(file).seekable else max(end - first, 1)
            pieces += [
                Piece(file, at, min(at + step, end - first), first)
                for at in range(0, end - first, step)
            ]
        return pieces

    def chunks(self, pieces: Sequence[Piece] | None = None) -> Iterator[Chunk]:
        """The rows in order, in chunks of about 4 MiB.

        Args:
            pieces: read these alone; all rows by default.
        """
        width, seen = 0, ""
        if pieces is None:
            starts: Iterator[tuple[str, int, int | None, int | None]] = (
                (file, 0, None, None) for file in self.files
            )
        else:
            starts = ((p.file, p.start, p.stop, p.first) for p in pieces)
        running = 0
        for file, start, stop, first in starts:
            number = running if first is None else first + start
            for block in _blocks(file, self._columns, start, stop):
                rows = as_rows(block.rows, file)
                if width not in (0, rows.shape[1]):
                    raise ValueError(
                        f"{self.source} must hold rows of one width, got {width} in {seen} and "
                        f"{rows.shape[1]} in {file}"
                    )
                width, seen = rows.shape[1], seen or file
                numbers = torch.arange(number, number + len(rows))
                yield Chunk(rows, numbers, block.labels, block.groups, file)
                number += len(rows)
            running = number

    @property
    def _columns(self) -> Columns:
        if self._chosen is None:
            first = self.files[0]
            with reading(first):
                name = _reader(first)(first, self._wanted).column()
            self._chosen = replace(self._wanted, embedding=name)
        return self._chosen

    def _offsets(self) -> list[int]:
        if self._starts is None:
            starts = [0]
            for file in self.files:
                with reading(file):
                    starts.append(starts[-1] + _reader(file)(file, self._columns).rows())
            self._starts = starts
        return self._starts


def _reader(file: str) -> Any:
    return _FORMATS[extension(file)]


def _blocks(file: str, columns: Columns, start: int, stop: int | None) -> Iterator[Block]:
    with reading(file):
        for block in _reader(file)(file, columns).blocks(start, stop, _CHUNK_BYTES):
            for name, values in ((columns.labels, block.labels), (columns.groups, block.groups)):
                if values is not None and values.ndim != 1:
                    raise EmbeddingFileError(
                        f"{name} must hold one value a row in {file}, got shape {values.shape}"
                    )
            yield block


def as_rows(rows: np.ndarray[Any, Any] | Tensor, what: str) -> Tensor:
    """Embeddings as a tensor of a floating type that holds them exactly.

    Args:
        rows: (n, D).
        what: they are, for messages.

    Raises:
        ValueError: if they are no matrix, or not real numbers of at most 64 bits.

    Examples:
        >>> as_rows(np.ones((2, 3), dtype=">i4"), "the array").dtype
        torch.float64
    """
    if isinstance(rows, np.ndarray):
        kind = rows.dtype
        check_numbers(kind, kind.kind in "iu" or (kind.kind == "f" and kind.itemsize <= 8), what)
        if kind.kind != "f":
            rows = rows.astype(np.float32 if kind.itemsize < 4 else np.float64)
        # Memory-mapped files are read-only and may have the other byte order.
        rows = torch.from_numpy(np.array(rows, dtype=rows.dtype.newbyteorder("=")))
    check_numbers(rows.dtype, rows.dtype in (*_FLOATS, *_INTEGERS), what)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"{what} must hold embeddings as (rows, dimensions), got shape {tuple(rows.shape)}"
        )
    return rows if rows.is_floating_point() else rows.double()
