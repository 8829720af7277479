"""Readers of tables: Parquet, Lance and WebDataset shards of embeddings.

Each has `rows()`, their number, and `blocks(start, stop, bytes)`, the rows in between.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

from lightly_collapse.io.embeddings_block import (
    Block,
    Columns,
    EmbeddingFileError,
    choose,
    needed,
    open_binary,
)

_BATCH = 1024  # rows, where their size is not known
_BUFFER = 2**20
_ARRAYS = ("npy", "pt", "pth")


class Parquet:
    """Vectors in a list or fixed-size-list column."""

    seekable = True

    def __init__(self, file: str, columns: Columns) -> None:
        self._file = file
        self._columns = columns

    def _open(self, stream: Any) -> Any:
        return needed("pyarrow.parquet").ParquetFile(stream, buffer_size=_BUFFER)

    def column(self) -> str:
        """The name of the embeddings."""
        with open_binary(self._file) as stream:
            return _names(self._open(stream).schema_arrow, self._columns, self._file)[0]

    def rows(self) -> int:
        """From the footer."""
        with open_binary(self._file) as stream:
            return int(self._open(stream).metadata.num_rows)

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the column and of those beside it; row groups outside are skipped."""
        with open_binary(self._file) as stream:
            table = self._open(stream)
            names = _names(table.schema_arrow, self._columns, self._file)
            stop = table.metadata.num_rows if stop is None else stop
            at, groups = 0, list[int]()
            first = 0
            for i in range(table.num_row_groups):
                size = table.metadata.row_group(i).num_rows
                if at + size > start and at < stop:
                    first = first if groups else at
                    groups.append(i)
                at += size
            if not groups:
                return
            at = first
            batch = max(1, limit // _bytes_per_row(table.metadata.row_group(groups[0]), names[0]))
            for part in table.iter_batches(batch, groups, list(dict.fromkeys(names))):
                low, high = max(start - at, 0), min(stop - at, part.num_rows)
                at += part.num_rows
                if low < high:
                    yield _block(part.slice(low, high - low), names, self._columns, self._file)


def _bytes_per_row(group: Any, name: str) -> int:
    """Of a column of lists, decoded; what is stored may be far smaller."""
    leaves = [group.column(i) for i in range(group.num_columns)]
    values = sum(c.num_values for c in leaves if c.path_in_schema.split(".")[0] == name)
    return int(max(1, 8 * values // max(group.num_rows, 1)))


class Lance:
    """Vectors in a list or fixed-size-list column of a Lance data set."""

    seekable = True

    def __init__(self, file: str, columns: Columns) -> None:
        self._file = file
        self._columns = columns

    def _open(self) -> Any:
        return needed("lance", "pylance").dataset(self._file)

    def column(self) -> str:
        """The name of the embeddings."""
        return _names(self._open().schema, self._columns, self._file)[0]

    def rows(self) -> int:
        """From the manifest."""
        return int(self._open().count_rows())

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the column and of those beside it."""
        table = self._open()
        names = _names(table.schema, self._columns, self._file)
        wanted = {"offset": start, "limit": (table.count_rows() if stop is None else stop) - start}
        unique = list(dict.fromkeys(names))
        for part in table.to_batches(columns=unique, batch_size=_BATCH, **wanted):
            yield _block(part, names, self._columns, self._file)


def _names(schema: Any, columns: Columns, file: str) -> list[str]:
    vectors = [field.name for field in schema if _is_list(field.type)]
    wanted = columns.embedding
    name = choose(list(schema.names) if wanted is not None else vectors, wanted, file)
    if not _is_list(schema.field(name).type):
        raise EmbeddingFileError(
            f"column must hold a list of numbers a row in {file}, got {name!r} of type "
            f"{schema.field(name).type}"
        )
    beside = [choose(list(schema.names), c, file) for c in columns.beside]
    for column in beside:
        if needed("pyarrow.types").is_nested(schema.field(column).type):
            raise EmbeddingFileError(
                f"{column} must hold one value a row in {file}, got {schema.field(column).type}"
            )
    return [name, *beside]


def _is_list(kind: Any) -> bool:
    types = needed("pyarrow.types")
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(
        is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))
    )


def _block(batch: Any, names: list[str], columns: Columns, file: str) -> Block:
    def beside(name: str | None) -> np.ndarray[Any, Any] | None:
        if name is None:
            return None
        values = batch.column(name)
        if values.null_count:  # numpy's integers have no missing value: 1 would become 1.0
            return np.array(values.to_pylist(), dtype=object)
        return np.asarray(values.to_numpy(zero_copy_only=False))

    rows = vectors(batch.column(names[0]), names[0], file)
    return Block(rows, beside(columns.labels), beside(columns.groups))


def vectors(column: Any, name: str, file: str) -> np.ndarray[Any, Any]:
    """A pyarrow list array as a matrix; a missing row or entry is NaN.

    Args:
        column: list, large list or fixed-size-list array.
        name: of the column, for the message.
        file: for the message.

    Returns:
        (n, D), without a copy where nothing is missing.

    Raises:
        EmbeddingFileError: if the rows differ in width.
    """
    compute = needed("pyarrow.compute")
    n = len(column)
    present = None
    if column.null_count:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        column = column.drop_null()
    lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(lengths) and (lengths != lengths[0]).any():
        at = int((lengths != lengths[0]).argmax())
        raise EmbeddingFileError(
            f"{name} must hold rows of one width in {file}, got {lengths[0]} and {lengths[at]}"
        )
    width = int(lengths[0]) if len(lengths) else getattr(column.type, "list_size", 0)
    flat = column.flatten()
    types = needed("pyarrow.types")
    if flat.null_count and types.is_integer(flat.type):
        flat = flat.cast("float64")
    rows = flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
    if present is None:
        return np.asarray(rows)
    floating = rows.dtype if np.issubdtype(rows.dtype, np.floating) else np.dtype(np.float64)
    filled = np.full((n, width), np.nan, dtype=floating)
    filled[present] = rows
    return filled


class WebDataset:
    """Samples of a tar archive: files `key.extension`, one extension holds the vector.

    Read as a stream from its start, as WebDataset does; `.npy` and `.pt` vectors.
    """

    seekable = False

    def __init__(self, file: str, columns: Columns) -> None:
        self._file = file
        self._columns = columns

    def column(self) -> str | None:
        """The extension of the embeddings in the first sample."""
        for key, sample in self._samples():
            return self._extension(key, sample)
        return None

    def rows(self) -> int:
        """Counted in the archive's list of files."""
        count, last = 0, None
        for member, _ in self._members():
            key, _, _ = _split(member.name)
            count += key != last
            last = key
        return count

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """All rows: there is no other start than that of the file."""
        rows: list[Any] = []
        labels: list[Any] = []
        groups: list[Any] = []
        size = 0

        def block() -> Block:
            widths = sorted({r.shape for r in rows if r is not None})
            if len(widths) > 1:
                raise EmbeddingFileError(
                    f"{self._file} must hold vectors of one width, got shapes "
                    f"{', '.join(map(str, widths))}"
                )
            empty = torch.full(widths[0] if widths else (1,), torch.nan)
            matrix = torch.stack([empty if r is None else r for r in rows])
            return Block(
                matrix,
                np.array(labels) if self._columns.labels is not None else None,
                np.array(groups) if self._columns.groups is not None else None,
            )

        for key, sample in self._samples():
            extension = self._extension(key, sample)
            rows.append(_vector(sample[extension], extension, f"{key}.{extension}", self._file))
            labels.append(self._text(key, sample, self._columns.labels))
            groups.append(self._text(key, sample, self._columns.groups))
            size += rows[-1].numel() * rows[-1].element_size()
            if size >= limit:
                yield block()
                rows, labels, groups, size = [], [], [], 0
        if rows:
            yield block()

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        wanted = {e for e in (self._columns.embedding, *self._columns.beside) if e is not None}
        key, sample = "", dict[str, bytes]()
        for member, archive in self._members():
            name, extension, known = _split(member.name)
            if name != key and sample:
                yield key, sample
                sample = {}
            key = name
            take = extension in wanted or known or extension.split(".")[0] in wanted
            file = archive.extractfile(member) if take else None
            sample[extension] = file.read() if file is not None else b""
        if sample:
            yield key, sample

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        with open_binary(self._file) as stream:
            tail = _Tail(stream)
            with tarfile.open(fileobj=tail, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    if member.isfile():
                        yield member, archive
            # tarfile takes a file that was cut between two members for complete.
            while tail.read(tarfile.RECORDSIZE):
                pass
            if tail.last.strip(b"\0"):
                raise EmbeddingFileError(
                    f"{self._file} is truncated: it has no end-of-archive mark"
                )

    def _extension(self, key: str, sample: dict[str, bytes]) -> str:
        wanted = self._columns.embedding
        names = list(sample) if wanted is not None else [e for e in sample if _is_array(e)]
        if wanted is not None and wanted not in sample:
            fitting = [e for e in sample if e.split(".")[0] == wanted and _is_array(e)]
            wanted = fitting[0] if len(fitting) == 1 else wanted
        return choose(names, wanted, f"{self._file}, sample {key}", "column (an extension)")

    def _text(self, key: str, sample: dict[str, bytes], column: str | None) -> str | None:
        if column is None:
            return None
        for extension, data in sample.items():
            if extension == column or extension.split(".")[0] == column:
                return data.decode().strip()
            if extension == "json" and column in (fields := json.loads(data)):
                return str(fields[column])
        raise EmbeddingFileError(
            f"column must be one of those in {self._file}, sample {key}, {', '.join(sample)}, "
            f"got {column!r}"
        )


class _Tail:
    """A stream that remembers its last 1024 bytes: the end-of-archive mark of a tar file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data)[-2 * tarfile.BLOCKSIZE :]
        return data


def _split(name: str) -> tuple[str, str, bool]:
    """Key and extension of a file, which begins at the first point of its name."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower(), _is_array(extension) or extension == "json"


def _is_array(extension: str) -> bool:
    return extension.lower().rpartition(".")[2] in _ARRAYS


def _vector(data: bytes, extension: str, name: str, file: str) -> torch.Tensor:
    try:
        if extension.endswith("npy"):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            vector = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        else:
            vector = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # What numpy, torch and pickle raise at damaged bytes has no common base.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EmbeddingFileError(f"{name} in {file} cannot be read: {reason}") from error
    if not isinstance(vector, torch.Tensor) or vector.squeeze().ndim != 1:
        raise EmbeddingFileError(f"{name} in {file} must hold one vector")
    vector = vector.squeeze()
    return vector if vector.is_floating_point() else vector.double()
