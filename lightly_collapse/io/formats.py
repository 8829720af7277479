"""Formats of checkpoints beside `torch.save`: safetensors, shards with an index, DCP folders."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from lightly_collapse.io.checkpoints import CORRUPT, read_checkpoint, reason

# In the order of preference.
_HUB_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_folder(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint that is a folder: DCP's form or the Hub's.

    Args:
        folder: with `.metadata` and `*.distcp` files, or with weights under the Hub's names.

    Returns:
        Tensors by name.

    Raises:
        ValueError: if it has neither form, or a file in it is damaged.
        OSError: if a file cannot be read.
    """
    if (folder / ".metadata").is_file():
        return read_distributed(folder)
    for name in _HUB_FILES:
        if (folder / name).is_file():
            return _read_part(folder / name)
    raise ValueError(
        f"checkpoint {folder}: a folder without weights; it must hold one of "
        f"{', '.join(_HUB_FILES)}, or .metadata of torch.distributed.checkpoint"
    )


def _read_part(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_index(path) if path.suffix == ".json" else read_checkpoint(path)


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU, read one by one.

    Raises:
        ValueError: if it is damaged.
        OSError: if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *CORRUPT) as error:
        raise ValueError(
            f"checkpoint {path}: corrupt or not a safetensors file ({reason(error)})"
        ) from error


def read_index(path: Path) -> dict[str, Any]:
    """The tensors of a sharded checkpoint.

    Args:
        path: its index, `{"weight_map": {tensor: file}}`; the files are beside it.

    Raises:
        ValueError: if the index or a shard is damaged, a shard lies elsewhere or lacks a tensor.
        OSError: if a file cannot be read.
    """
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
        outside = [s for s in shards if Path(s).name != s or Path(s).suffix == ".json"]
    except (*CORRUPT, RecursionError) as error:
        raise ValueError(
            f"checkpoint {path}: not an index of a sharded checkpoint ({reason(error)})"
        ) from error
    if outside:
        raise ValueError(f"checkpoint {path}: shard {outside[0]!r} must be a file beside the index")
    state: dict[str, Any] = {}
    for shard in shards:
        if not (path.parent / shard).is_file():
            raise FileNotFoundError(f"checkpoint {path}: its shard {shard} does not exist")
        content = _read_part(path.parent / shard)
        missing = [n for n, file in files.items() if file == shard and n not in content]
        if missing:
            raise ValueError(f"checkpoint {path}: shard {shard} lacks {missing[0]!r}")
        state |= {name: content[name] for name, file in files.items() if file == shard}
    return state


# All that the index of a distributed checkpoint is made of; none of these runs code.
_METADATA = {
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


class _MetadataUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in _METADATA.get(module, ()):
            raise pickle.UnpicklingError(
                f"asks for {module}.{name}, which no index of tensors needs; it could run code"
            )
        return super().find_class(module, name)


def read_distributed(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint of torch.distributed.checkpoint, put together from their shards.

    The index is unpickled with a list of allowed classes and the shards with `weights_only=True`,
    since PyTorch's own reader would run any code in the index.

    Args:
        folder: with `.metadata` and `*.distcp`; of Lightning's also `meta.pt`.

    Returns:
        Tensors by name; plain values under their names, and Lightning's metadata.

    Raises:
        ValueError: if the index or a shard is damaged, asks for code, or is compressed.
        OSError: if a file cannot be read.
    """
    with (folder / ".metadata").open("rb") as file:
        try:
            metadata = _MetadataUnpickler(file).load()
            entries = dict(metadata.state_dict_metadata)
            places = dict(metadata.storage_data)
            paths = dict(metadata.planner_data or {})
        except CORRUPT as error:
            raise ValueError(
                f"checkpoint {folder}: .metadata is damaged or not of "
                f"torch.distributed.checkpoint ({reason(error)})"
            ) from error
    content: dict[str, Any] = {}
    for name, entry in entries.items():
        try:
            path = _path(name, paths)
            if any("optim" in str(part) for part in path[:2]):
                continue
            if hasattr(entry, "chunks"):
                value: Any = _assemble(folder, name, entry, places)
            else:
                value = _plain_value(folder, name, places)
            _put(content, path, value)
        except CORRUPT as error:
            raise ValueError(
                f"checkpoint {folder}: {name} cannot be read ({reason(error)})"
            ) from error
    if (folder / "meta.pt").is_file():  # Lightning's: everything beside the weights
        content |= {k: v for k, v in read_checkpoint(folder / "meta.pt").items() if k == "pretrain"}
    return content


def _path(name: str, paths: dict[str, Any]) -> tuple[Any, ...]:
    path = paths.get(name, (name,))
    return tuple(path) if isinstance(path, (tuple, list)) and path else (name,)


def _put(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        content = content.setdefault(str(part), {})
    content[str(path[-1])] = value


def _assemble(folder: Path, name: str, entry: Any, places: dict[Any, Any]) -> Tensor:
    by_offset = {
        tuple(index.offset): place
        for index, place in places.items()
        if index.fqn == name and index.offset is not None
    }
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    filled = 0
    for chunk in entry.chunks:
        part = torch.load(
            io.BytesIO(_bytes(folder, by_offset[tuple(chunk.offsets)])),
            map_location="cpu",
            weights_only=True,
        )
        if not isinstance(part, Tensor) or part.shape != chunk.sizes:
            raise ValueError(f"a shard is not a tensor of shape {tuple(chunk.sizes)}")
        region = tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[region] = part
        filled += part.numel()
    if filled != whole.numel():
        raise ValueError(f"its shards hold {filled} of {whole.numel()} numbers")
    return whole


def _plain_value(folder: Path, name: str, places: dict[Any, Any]) -> Any:
    """A value that is no tensor; None where it is not plain."""
    place = next((p for index, p in places.items() if index.fqn == name), None)
    if place is None:
        return None
    try:
        return torch.load(io.BytesIO(_bytes(folder, place)), weights_only=True)
    except CORRUPT:
        return None


def _bytes(folder: Path, place: Any) -> bytes:
    if getattr(place, "transform_descriptors", None):
        raise ValueError(f"compressed by {place.transform_descriptors}; save without extensions")
    if Path(place.relative_path).name != place.relative_path:
        raise ValueError(f"its shard {str(place.relative_path)!r} must be a file in the folder")
    with (folder / place.relative_path).open("rb") as file:
        file.seek(place.offset)
        data: bytes = file.read(place.length)
    if len(data) != place.length:
        raise ValueError(f"its shard {place.relative_path} ends early")
    return data
