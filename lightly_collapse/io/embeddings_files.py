"""Which files a source of embeddings is: a path, a folder, a glob or a URL."""

import glob
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from lightly_collapse.io.embeddings_block import is_url, reading, split_url

EXTENSIONS = (
    ".npy",
    ".npz",
    ".pt",
    ".pth",
    ".safetensors",
    ".zarr",
    ".parquet",
    ".lance",
    ".tar",
)
_FOLDERS = (".zarr", ".lance")  # one data set each, though a folder


def find_files(source: str) -> list[str]:
    """The files of a source, in the order of their names.

    Args:
        source: path or fsspec URL of a file, a folder (with all folders in it) or a glob; of
            `{000..012}` every number. What begins with a point or an underscore is left out, and
            files of a folder that are of no known format: writers leave such things beside data.

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
    look = _at_url if is_url(source) else _at_path
    found = sorted({f for pattern in _counted(source) for f in look(pattern)})
    if not found:
        raise ValueError(f"source must be embedding files that exist, got nothing at {source}")
    kinds = sorted({extension(f) for f in found})
    if len(kinds) > 1 or kinds[0] not in EXTENSIONS:
        raise ValueError(
            f"source must hold files of one of the formats {', '.join(EXTENSIONS)}, got "
            f"{', '.join(k or 'a file without extension' for k in kinds)} at {source}"
        )
    return found


def extension(path: str) -> str:
    """The extension of a path or URL, with its point, in lower case."""
    first = path.partition("::")[0]
    return os.path.splitext(urlparse(first).path if is_url(path) else path.rstrip("/"))[1].lower()


def _counted(source: str) -> list[str]:
    """`a-{000..002}.tar` as its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if match is None:
        return [source]
    first, last = match.groups()
    names = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    head, tail = source[: match.start()], source[match.end() :]
    return [name for n in names for name in _counted(head + n + tail)]


def _at_path(source: str) -> Iterator[str]:
    for path in glob.glob(source, recursive=True) if glob.has_magic(source) else [source]:
        if not os.path.isdir(path) or extension(path) in _FOLDERS:
            yield from [path] if os.path.exists(path) else []
            continue
        for folder, inner, names in os.walk(path, followlinks=True):
            whole = [n for n in inner if extension(n) in _FOLDERS]
            inner[:] = [n for n in inner if n not in whole and not _is_hidden(n)]
            yield from (os.path.join(folder, n) for n in (*names, *whole) if _is_data(n))


def _at_url(source: str) -> Iterator[str]:
    files, path = split_url(source)
    scheme, archive = urlparse(source).scheme, source.partition("::")[2]
    # In a web address a question mark begins the query.
    magic = "*" in path if scheme.startswith("http") else glob.has_magic(path)
    with reading(source):
        if not magic and (extension(source) in _FOLDERS or not files.isdir(path)):
            yield from [source] if files.exists(path) else []
            return
        for found in files.glob(path) if magic else [path]:
            for file in _below(files, found):
                name = files.unstrip_protocol(file)
                yield f"{scheme}://{file}::{archive}" if archive else name


def _below(files: Any, path: str) -> Iterator[str]:
    if extension(path) in _FOLDERS or not files.isdir(path):
        yield from [path] if files.exists(path) else []
        return
    for entry in files.ls(path, detail=True):
        name = entry["name"].rstrip("/")
        if _is_data(name):
            yield name
        elif entry["type"] == "directory" and not _is_hidden(name):
            yield from _below(files, name)


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith((".", "_"))


def _is_data(path: str) -> bool:
    return not _is_hidden(path) and extension(path) in EXTENSIONS
