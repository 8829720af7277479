"""Embeddings in files: one pass over their rows in bounded memory, whatever the format.

A source is a path or fsspec URL of a file, a folder of them, or a glob; `{000..012}` counts. Its
files, in the order of their names, are one table: rows are numbered through all of them.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor

from lightly_collapse.io import embeddings_arrays as arrays
from lightly_collapse.io import embeddings_tables as tables
from lightly_collapse.io.embeddings_block import Block, Columns, filesystem, is_url, reading

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
_FOLDERS = (".zarr", ".lance")  # one data set each, though a folder
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
            `.lance`, `.tar`), a folder or a glob of files of one of these formats.
        column: of the embeddings: a column of a table, an array of a file of several, the file
            extension within a WebDataset shard. By default the only one that holds vectors, or
            the one of them called embedding, embeddings, features, representation or z.
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
        self._columns = Columns(column, labels_column, group_column)
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
                rows = _as_tensor(block.rows, file)
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

    def _offsets(self) -> list[int]:
        if self._starts is None:
            starts = [0]
            for file in self.files:
                with reading(file):
                    starts.append(starts[-1] + _reader(file)(file, self._columns).rows())
            self._starts = starts
        return self._starts


def find_files(source: str) -> list[str]:
    """The files of a source, in the order of their names.

    Args:
        source: path or fsspec URL of a file, folder or glob.

    Returns:
        Paths, or URLs where a URL was given.

    Raises:
        ValueError: if there is none, or they are not of one known format.

    Examples:
        >>> find_files("nowhere.npy")
        Traceback (most recent call last):
        ...
        ValueError: source must be embedding files that exist, got nothing at nowhere.npy
    """
    found = sorted({f for pattern in _counted(source) for f in _matches(pattern)})
    if not found:
        raise ValueError(f"source must be embedding files that exist, got nothing at {source}")
    kinds = sorted({_extension(f) for f in found})
    if len(kinds) > 1 or kinds[0] not in _FORMATS:
        raise ValueError(
            f"source must hold files of one of the formats {', '.join(_FORMATS)}, got "
            f"{', '.join(k or 'a file without extension' for k in kinds)} at {source}"
        )
    return found


def _counted(source: str) -> list[str]:
    """`a-{000..002}.tar` as its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if match is None:
        return [source]
    first, last = match.groups()
    names = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    head, tail = source[: match.start()], source[match.end() :]
    return [name for n in names for name in _counted(head + n + tail)]


def _matches(source: str) -> list[str]:
    if not is_url(source):
        paths = glob.glob(source) if glob.has_magic(source) else [source]
        return [
            f
            for p in paths
            for f in (_inside(p, os.listdir) if _is_plain_folder(p) else [p])
            if os.path.exists(f)
        ]
    files = filesystem(source)
    scheme = urlparse(source).scheme
    with reading(source):
        paths = files.glob(source) if glob.has_magic(source) else [source]
        return [
            files.unstrip_protocol(f) if not f.startswith(f"{scheme}:") else f
            for p in paths
            for f in _listed(files, p)
        ]


def _listed(files: Any, path: str) -> list[str]:
    if _extension(path) in _FOLDERS or not files.isdir(path):
        return [path] if files.exists(path) else []
    return [f for f in files.ls(path, detail=False) if _is_data(f)]


def _is_plain_folder(path: str) -> bool:
    return os.path.isdir(path) and _extension(path) not in _FOLDERS


def _inside(folder: str, listed: Any) -> list[str]:
    return [os.path.join(folder, name) for name in listed(folder) if _is_data(name)]


def _is_data(name: str) -> bool:
    # Writers leave `_SUCCESS`, checksums and read-me files beside the data.
    base = os.path.basename(name.rstrip("/"))
    return not base.startswith((".", "_")) and _extension(base) in _FORMATS


def _extension(path: str) -> str:
    return os.path.splitext(urlparse(path).path if is_url(path) else path.rstrip("/"))[1].lower()


def _reader(file: str) -> Any:
    return _FORMATS[_extension(file)]


def _blocks(file: str, columns: Columns, start: int, stop: int | None) -> Iterator[Block]:
    with reading(file):
        yield from _reader(file)(file, columns).blocks(start, stop, _CHUNK_BYTES)


def _as_tensor(rows: Any, file: str) -> Tensor:
    if isinstance(rows, np.ndarray):
        if not np.issubdtype(rows.dtype, np.floating):
            if not np.issubdtype(rows.dtype, np.number):
                raise ValueError(f"{file} must hold numbers as embeddings, got {rows.dtype}")
            rows = rows.astype(np.float32 if rows.dtype.itemsize < 4 else np.float64)
        # Memory-mapped files are read-only and may have the other byte order.
        rows = torch.from_numpy(np.array(rows, dtype=rows.dtype.newbyteorder("=")))
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"{file} must hold embeddings as (rows, dimensions), got shape {tuple(rows.shape)}"
        )
    return rows if rows.is_floating_point() else rows.double()
