"""What the readers of embedding files share: blocks of rows, columns, errors, URLs."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

PREFERRED = ("embedding", "embeddings", "features", "representation", "z")


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read; None where the reader chooses, or none is wanted."""

    embedding: str | None = None
    labels: str | None = None
    groups: str | None = None

    @property
    def beside(self) -> list[str]:
        """The columns read beside the embeddings."""
        return [name for name in (self.labels, self.groups) if name is not None]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file: (n, D) of numpy or torch, and what stands beside them."""

    rows: Any
    labels: np.ndarray[Any, Any] | None = None
    groups: np.ndarray[Any, Any] | None = None


class EmbeddingFileError(ValueError):
    """A file of embeddings that cannot be read, or does not hold what was asked for."""


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn what the libraries raise about damaged files into one ValueError that names the file.

    Raises:
        EmbeddingFileError: with the first line of the library's message.
    """
    try:
        yield
    except (EmbeddingFileError, ImportError, FileNotFoundError, PermissionError):
        raise
    # Every library has errors of its own for a damaged file, some without a common base.
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EmbeddingFileError(f"{file} cannot be read: {lines[0]}") from error


def choose(names: Sequence[str], wanted: str | None, file: str, what: str = "column") -> str:
    """The name of the embeddings among those that a file holds.

    Args:
        names: candidates: what holds vectors where nothing is `wanted`, else everything.
        wanted: the name asked for.
        file: for the message.
        what: a name stands for, for the message.

    Raises:
        EmbeddingFileError: if the one asked for is missing, or none or several could be meant.
    """
    if wanted is not None:
        if wanted not in names:
            raise EmbeddingFileError(
                f"{what} must be one of those in {file}, {', '.join(names) or 'none'}, "
                f"got {wanted!r}"
            )
        return wanted
    if len(names) == 1:
        return names[0]
    known = [name for name in PREFERRED if name in names]
    if not known:
        raise EmbeddingFileError(
            f"{what} must be given: {file} holds {', '.join(names) or 'none with vectors'}"
        )
    return known[0]


def check_numbers(kind: Any, known: bool, file: str) -> None:
    """Raise an EmbeddingFileError unless embeddings are of a type that loses nothing in float64.

    Args:
        kind: their dtype, for the message.
        known: whether it is such a type.
        file: for the message.
    """
    if not known:
        raise EmbeddingFileError(
            f"{file} must hold embeddings as integers or as real numbers of 16, 32 or 64 bits, got "
            f"{kind}"
        )


def check_lengths(file: str, rows: int, beside: Mapping[str, int]) -> None:
    """Raise an EmbeddingFileError unless every column has as many rows as the embeddings."""
    for name, length in beside.items():
        if length != rows:
            raise EmbeddingFileError(
                f"{name} must have one entry a row in {file}, got {length} for {rows} rows"
            )


def needed(module: str, package: str | None = None, extra: str = "embeddings") -> Any:
    """Import an optional package.

    Raises:
        ImportError: with the pip command, if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.split(".", maxsplit=1)[0]
        raise ImportError(
            f"{name} is needed and not installed: pip install 'lightly-collapse[{extra}]'"
        ) from error


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as s3://bucket/key or memory://name."""
    return "://" in path


def split_url(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, which may be chained (`zip://a.npy::s3://...`), and a path.

    Raises:
        EmbeddingFileError: if the protocol is unknown.
        ImportError: if fsspec or the protocol's package is not installed.
    """
    fsspec = needed("fsspec")
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise EmbeddingFileError(f"source must be a URL that fsspec knows, got {url}") from error
    return files, path


def open_binary(path: str) -> BinaryIO:
    """Open a local file or a URL for reading bytes.

    Raises:
        OSError: if it cannot be opened.
    """
    if not is_url(path):
        return open(path, "rb")
    files, inner = split_url(path)
    stream: BinaryIO = files.open(inner, "rb")
    with suppress(AttributeError):
        stream.filesystem = files  # type: ignore[attr-defined]  # an archive closes with its last use
    return stream
