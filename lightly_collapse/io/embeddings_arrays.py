"""Readers of arrays: numpy, torch, safetensors and Zarr files of embeddings.

Each has `rows()`, their number, and `blocks(start, stop, bytes)`, the rows in between.
"""

import json
import pickle
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.io.blosc import check_chunks
from lightly_collapse.io.embeddings_block import (
    Block,
    Columns,
    EmbeddingFileError,
    check_lengths,
    choose,
    is_url,
    needed,
    open_binary,
)

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_HEADER_LIMIT = 10**8  # that of the format


def _step(bytes_per_row: int, limit: int) -> int:
    return max(1, limit // max(bytes_per_row, 1))


class Npy:
    """One array, memory-mapped where the file is local, else read as a stream."""

    seekable = True

    def __init__(self, file: str, columns: Columns) -> None:
        asked = [*([] if columns.embedding is None else [columns.embedding]), *columns.beside]
        if asked:
            raise EmbeddingFileError(
                f"a .npy file holds no column {asked[0]!r}: use .npz, Parquet or another "
                "format with columns"
            )
        self._file = file

    def column(self) -> None:
        """There is one array, without a name."""

    def rows(self) -> int:
        """From the header."""
        with open_binary(self._file) as stream:
            shape, _ = _npy_header(stream, self._file)
        return int(shape[0])

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the array."""
        if not is_url(self._file):
            array = np.load(self._file, mmap_mode="r", allow_pickle=False)
            _check_matrix(array.shape, self._file)
            step = _step(array[:1].nbytes, limit)
            stop = len(array) if stop is None else stop
            for at in range(start, stop, step):
                yield Block(array[at : min(at + step, stop)])
            return
        with open_binary(self._file) as stream:
            shape, dtype = _npy_header(stream, self._file)
            yield from _stream(stream, shape, dtype, start, stop, limit, self._file)


class _Arrays(ABC):
    """Several named arrays, one a column; subclasses say how to open them."""

    seekable = True
    _what = "column"

    def __init__(self, file: str, columns: Columns) -> None:
        self._file = file
        self._columns = columns

    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array, by name."""

    def _name(self, shapes: dict[str, tuple[int, ...]]) -> str:
        wanted = self._columns.embedding
        names = [n for n, s in shapes.items() if wanted is not None or len(s) == 2]
        name = choose(names, wanted, self._file, self._what)
        _check_matrix(shapes[name], self._file)
        beside = {c: shapes[choose(list(shapes), c, self._file)] for c in self._columns.beside}
        check_lengths(self._file, shapes[name][0], {c: s[0] if s else 0 for c, s in beside.items()})
        return name

    def column(self) -> str:
        """The name of the embeddings."""
        return self._name(self._shapes())

    def rows(self) -> int:
        """From the headers."""
        shapes = self._shapes()
        return shapes[self._name(shapes)][0]


class Npz(_Arrays):
    """Arrays in a zip file, each decompressed as a stream."""

    @override
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        with open_binary(self._file) as stream, zipfile.ZipFile(stream) as archive:
            return {
                name.removesuffix(".npy"): _member_shape(archive, name, self._file)
                for name in archive.namelist()
                if name.endswith(".npy")
            }

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the array and of those beside it."""
        name = self._name(self._shapes())
        with ExitStack() as stack:
            archive = stack.enter_context(
                zipfile.ZipFile(stack.enter_context(open_binary(self._file)))
            )
            beside = {}
            for column in self._columns.beside:
                with archive.open(f"{column}.npy") as member:
                    beside[column] = np.lib.format.read_array(member, allow_pickle=False)
            member = stack.enter_context(archive.open(f"{name}.npy"))
            shape, dtype = _npy_header(member, self._file)
            at = start
            for block in _stream(member, shape, dtype, start, stop, limit, self._file):
                yield _with_columns(block.rows, beside, self._columns, at)
                at += len(block.rows)


class TorchFile(_Arrays):
    """A tensor, or a dictionary of them, written by torch.save; memory-mapped."""

    def _load(self, stack: ExitStack) -> dict[str, Tensor]:
        path = self._file
        if is_url(path):
            path = stack.enter_context(_downloaded(path))
        # Files of torch before 1.6 cannot be mapped.
        try:
            loaded = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except pickle.UnpicklingError as error:
            raise EmbeddingFileError(
                f"{self._file} must hold tensors alone, got Python objects, which could run code "
                "when they are loaded, or a damaged file"
            ) from error
        if isinstance(loaded, Tensor):
            loaded = {"tensor": loaded}
        if not isinstance(loaded, dict):
            raise EmbeddingFileError(
                f"{self._file} must hold a tensor or a dictionary of tensors, got "
                f"{type(loaded).__name__}"
            )
        return {str(n): v for n, v in loaded.items() if isinstance(v, Tensor)}

    @override
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        with ExitStack() as stack:
            return {n: tuple(t.shape) for n, t in self._load(stack).items()}

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the tensor and of those beside it."""
        with ExitStack() as stack:
            tensors = self._load(stack)
            name = self._name({n: tuple(t.shape) for n, t in tensors.items()})
            z = tensors[name].detach()
            beside = {c: tensors[c].numpy() for c in self._columns.beside}
            stop = len(z) if stop is None else stop
            step = _step(z.shape[1] * z.element_size(), limit)
            for at in range(start, stop, step):
                rows = z[at : min(at + step, stop)].clone()
                yield _with_columns(rows, beside, self._columns, at)


class Safetensors(_Arrays):
    """Named tensors behind a JSON header, read by position."""

    def _header(self, stream: BinaryIO) -> tuple[dict[str, Any], int]:
        size = int.from_bytes(_exactly(stream, 8, self._file), "little")
        if size > _HEADER_LIMIT:
            raise EmbeddingFileError(f"{self._file} is no safetensors file: its header is too long")
        header = json.loads(_exactly(stream, size, self._file))
        if not isinstance(header, dict):
            raise EmbeddingFileError(f"{self._file} is no safetensors file: its header is no table")
        header.pop("__metadata__", None)
        for name, entry in header.items():
            try:
                shape, (start, end) = entry["shape"], entry["data_offsets"]
                dtype = _SAFETENSORS.get(entry["dtype"])
                fits = dtype is None or end - start == prod(shape) * dtype.itemsize
            except (KeyError, TypeError, ValueError):
                fits = False
            if not fits:
                raise EmbeddingFileError(
                    f"{self._file} has a damaged header: {name} has not the size of its shape"
                )
        return header, 8 + size

    @override
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        with open_binary(self._file) as stream:
            return {n: tuple(t["shape"]) for n, t in self._header(stream)[0].items()}

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the tensor and of those beside it."""
        name = self._name(self._shapes())
        with open_binary(self._file) as stream:
            header, data = self._header(stream)

            def part(name: str, at: int, end: int) -> Tensor:
                entry = header[name]
                dtype = _SAFETENSORS.get(entry["dtype"])
                if dtype is None:
                    raise EmbeddingFileError(
                        f"{self._file} must hold {name} in one of {', '.join(_SAFETENSORS)}, got "
                        f"{entry['dtype']}"
                    )
                shape = entry["shape"][1:]
                row = prod(shape) * dtype.itemsize
                stream.seek(data + entry["data_offsets"][0] + at * row)
                buffer = bytearray(_exactly(stream, (end - at) * row, self._file))
                if not buffer:
                    return torch.zeros(end - at, *shape, dtype=dtype)
                return torch.frombuffer(buffer, dtype=dtype).view(end - at, *shape)

            rows, width = header[name]["shape"]
            stop = rows if stop is None else stop
            step = _step(width * 8, limit)
            for at in range(start, stop, step):
                end = min(at + step, stop)
                beside = {c: part(c, at, end).numpy() for c in self._columns.beside}
                yield _with_columns(part(name, at, end), beside, self._columns, 0)


class Zarr(_Arrays):
    """An array, or a group of them, read chunk by chunk."""

    def _open(self) -> dict[str, Any]:
        zarr = needed("zarr")
        node = zarr.open(self._file, mode="r")
        if isinstance(node, zarr.Array):
            return {"array": node}
        return dict(node.arrays())

    def _whole(self, name: str, array: Any) -> Any:
        """The array, unless a part of it was never written, which Zarr reads as zeros."""
        missing = array.nchunks - array.nchunks_initialized
        if missing:
            raise EmbeddingFileError(
                f"{name} in {self._file} lacks {missing} of its {array.nchunks} chunks: it was "
                "written in part, or they hold the fill value alone"
            )
        return array

    @override
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: tuple(a.shape) for n, a in self._open().items()}

    def blocks(self, start: int, stop: int | None, limit: int) -> Iterator[Block]:
        """Rows of the array and of those beside it, in multiples of its chunks."""
        arrays = self._open()
        name = self._name({n: tuple(a.shape) for n, a in arrays.items()})
        z = self._whole(name, arrays[name])
        stop = z.shape[0] if stop is None else stop
        for array in (z, *(arrays[column] for column in self._columns.beside)):
            check_chunks(array, self._file, start, stop)
        chunk = max(1, z.chunks[0])
        step = max(1, _step(z.shape[1] * z.dtype.itemsize, limit) // chunk) * chunk
        at = start
        while at < stop:
            end = min((at // step + 1) * step, stop)
            beside = {c: np.asarray(arrays[c][at:end]) for c in self._columns.beside}
            yield _with_columns(np.asarray(z[at:end]), beside, self._columns, 0)
            at = end


def _with_columns(rows: Any, beside: dict[str, Any], columns: Columns, at: int) -> Block:
    def cut(name: str | None) -> Any:
        return None if name is None else beside[name][at : at + len(rows)]

    return Block(rows, cut(columns.labels), cut(columns.groups))


def _check_matrix(shape: tuple[int, ...], file: str) -> None:
    if len(shape) != 2:
        raise EmbeddingFileError(
            f"{file} must hold embeddings as (rows, dimensions), got shape {tuple(shape)}"
        )


def _npy_header(stream: Any, file: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read.get(version[0], read[2])(stream)
    if dtype.hasobject:
        raise EmbeddingFileError(f"{file} must hold numbers, got Python objects")
    if fortran and len(shape) > 1:
        raise EmbeddingFileError(
            f"{file} must be stored row by row to be read as a stream, got Fortran order"
        )
    return shape, dtype


def _member_shape(archive: zipfile.ZipFile, name: str, file: str) -> tuple[int, ...]:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        return read.get(version[0], read[2])(member)[0]


def _stream(
    stream: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    start: int,
    stop: int | None,
    limit: int,
    file: str,
) -> Iterator[Block]:
    """Rows `start` to `stop` of an array whose data begin here."""
    _check_matrix(shape, file)
    row = shape[1] * dtype.itemsize
    stream.seek(start * row, 1)
    stop = shape[0] if stop is None else stop
    step = _step(row, limit)
    for at in range(start, stop, step):
        count = min(step, stop - at)
        data = _exactly(stream, count * row, file)
        yield Block(np.frombuffer(data, dtype).reshape(count, shape[1]))


def _exactly(stream: Any, size: int, file: str) -> bytes:
    parts, left = [], size
    while left:
        part = stream.read(left)
        if not part:
            raise EmbeddingFileError(
                f"{file} is truncated: {left} of {size} bytes are missing at its end"
            )
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _downloaded:  # noqa: N801 - a context manager
    """A local copy of a URL, for formats that need a file; removed afterwards."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "file")
        with open_binary(self._url) as stream, path.open("wb") as local:
            while part := stream.read(2**24):
                local.write(part)
        return str(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
