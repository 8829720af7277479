"""Chunks that Blosc would read beyond their end."""

import re
from pathlib import Path
from typing import Any

from lightly_collapse.io.embeddings_block import EmbeddingFileError

_HEADER = 16  # bytes, the last four the length of the chunk
_CHUNK_NAME = re.compile(r"(?:c/)?(\d+)(?:[./]\d+)*")


def check_chunks(array: Any, file: str, start: int, stop: int) -> None:
    """Raise at a chunk of a Zarr array that is cut short, where Blosc compressed it.

    Blosc trusts the length in a chunk's header: of a shorter chunk it gives back what lies behind
    it in memory. Other compressors notice. Arrays behind URLs are not looked at.

    Args:
        array: of Zarr 2 or 3.
        file: the folder that it is in, for messages too.
        start: the first row that is read.
        stop: the row after the last one.

    Raises:
        EmbeddingFileError: naming the chunk.
    """
    folder = Path(file, array.path)
    # A shard holds several chunks and their checksums. Zarr 2 has one compressor, 3 several.
    compressors = array.compressors if hasattr(array, "compressors") else [array.compressor]
    is_blosc = bool(compressors) and "blosc" in type(compressors[-1]).__name__.lower()
    if not is_blosc or getattr(array, "shards", None) or not folder.is_dir():
        return
    chunk = max(1, array.chunks[0])
    rows = range(start // chunk, -(-stop // chunk))
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        index = _CHUNK_NAME.fullmatch(name)
        if index is None or int(index[1]) not in rows or not path.is_file():
            continue
        with path.open("rb") as stream:
            size, header = path.stat().st_size, stream.read(_HEADER)
        wanted = max(int.from_bytes(header[12:], "little"), _HEADER)
        if size < wanted:
            raise EmbeddingFileError(
                f"{file} is truncated: the chunk {Path(array.path, name)} has {size} bytes of "
                f"{wanted}"
            )
