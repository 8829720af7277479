"""The weights of a checkpoint of any common format, by name, and what it says about them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from lightly_collapse.io import formats, hub
from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.io.checkpoints import CORRUPT, read_checkpoint, reason
from lightly_collapse.io.networks import flatten


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint of `lightly-collapse pretrain` says about its weights.

    Attributes:
        method: class name of the pretraining method, such as `SimCLR`.
        backbone: settings of the encoder, which is under `backbone.` in the state dict.
        feature_dim: dimensions of the representation.
    """

    method: str
    backbone: BackboneSettings
    feature_dim: int


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint.

    Attributes:
        source: where it came from, for messages.
        state: all tensors by name, the optimizer's left out; see `networks.flatten`.
        pretrained: metadata of `lightly-collapse pretrain`; None in other checkpoints.
        config: `config.json` of a folder in the Hub's form; empty otherwise.
        arch: the architecture's name where a training script wrote it beside the weights (`arch`).
    """

    source: str
    state: Mapping[str, Tensor]
    pretrained: Pretrained | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    arch: str | None = None


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read the weights of a checkpoint and what it says about them, in any common format.

    Files: `torch.save` of a state dict or of dictionaries that hold one (Lightning's, Lightly's,
    this package's, `student`/`teacher`, VISSL's), `.safetensors`, and the index (`.json`) of a
    sharded checkpoint. Folders: the Hub's form (`config.json` beside the weights), and
    torch.distributed.checkpoint's, as FSDP writes it, read without a process group. Names that
    begin with `hf-hub:` are fetched from the Hugging Face Hub. No code in a checkpoint is run.

    Args:
        path: the file, folder or `hf-hub:` name.

    Returns:
        Tensors by name, and the metadata.

    Raises:
        ValueError: if it is no checkpoint, is damaged or holds no tensors, or a package that its
            format needs is missing.
        OSError: if it cannot be read, or the Hub cannot be reached.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"w": torch.ones(2)}}, f"{folder}/a.ckpt")
        ...     read_weights(f"{folder}/a.ckpt").state
        {'w': tensor([1., 1.])}
    """
    name = os.fspath(path)
    place = hub.fetch(name) if name.startswith(hub.SCHEME) else Path(path)
    if not place.exists():
        raise FileNotFoundError(f"checkpoint {name} does not exist")
    config: dict[str, Any] = {}
    if place.is_dir():
        content = formats.read_folder(place)
        config = hub.read_config(place)
    elif place.suffix == ".safetensors":
        content = formats.read_safetensors(place)
    elif place.suffix == ".json":
        content = formats.read_index(place)
    else:
        content = read_checkpoint(place)
    return weights_of(content, name, config)


def weights_of(
    content: Mapping[str, Any], source: str, config: Mapping[str, Any] | None = None
) -> Weights:
    """The weights in what was read from a checkpoint.

    Args:
        content: nested dictionaries with tensors.
        source: where it came from, for messages.
        config: see `Weights`.

    Returns:
        Tensors by name, and the metadata.

    Raises:
        ValueError: if there is no tensor in it, or its metadata is damaged.
    """
    state = flatten(content)
    if not state:
        keys = ", ".join(repr(key) for key in list(content)[:8]) or "nothing"
        raise ValueError(f"checkpoint {source}: holds no tensors and no state dict, only {keys}")
    arch = content.get("arch")
    return Weights(
        source=source,
        state=state,
        pretrained=_pretrained(content["pretrain"], source) if "pretrain" in content else None,
        config=config or {},
        arch=arch if isinstance(arch, str) else None,
    )


def _pretrained(written: Any, source: str) -> Pretrained | None:
    if isinstance(written, Tensor):
        return None
    try:
        settings = written["backbone"]
        known = {f.name: type(f.default) for f in fields(BackboneSettings)}
        wrong = [n for n, v in settings.items() if n not in known or type(v) is not known[n]]
        if wrong:
            raise ValueError(f"backbone settings {', '.join(map(repr, wrong))}")
        return Pretrained(
            str(written["method"]), BackboneSettings(**settings), int(written["feature_dim"])
        )
    except CORRUPT as error:
        raise ValueError(
            f"checkpoint {source}: its entry `pretrain` is damaged or of another version of this "
            f"package ({reason(error)})"
        ) from error
