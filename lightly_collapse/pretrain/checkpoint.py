"""Checkpoints of a run: written atomically, read as plain data, checked before a run is resumed."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from typing_extensions import override

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.weights import weights_of

_Path = str | os.PathLike[str]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically and read without running code in them."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint under a temporary name and rename it to `path`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: torch.save(checkpoint, file))

    @override
    def load_checkpoint(self, path: _Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, with `weights_only=True`."""
        return read_checkpoint(path)


def check_checkpoint(path: _Path, method: str, backbone: BackboneSettings) -> None:
    """Make sure that a run of a method and backbone can be resumed from a checkpoint.

    Args:
        path: the file.
        method: name of the method.
        backbone: settings of its backbone.

    Raises:
        ValueError: if it is damaged, not of `pretrain`, or of another method or backbone.
        OSError: if it cannot be read.
    """
    written = weights_of(read_checkpoint(path), str(path)).pretrained
    if written is None:
        raise ValueError(f"checkpoint {path} was not written by lightly-collapse pretrain")
    if written.method != method:
        raise ValueError(f"checkpoint {path} is of the method {written.method}, not {method}")
    theirs, ours = asdict(written.backbone), asdict(backbone)
    different = [
        f"{key} {theirs[key]}, not {ours[key]}" for key in ours if theirs[key] != ours[key]
    ]
    if different:
        raise ValueError(f"checkpoint {path} has another backbone: {', '.join(different)}")
