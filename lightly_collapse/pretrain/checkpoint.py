"""Checkpoints: written whole, read as plain data, and known by their method."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.io.files import atomic_write

_Path = str | os.PathLike[str]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, renamed into place when complete and read as plain data."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint beside `path`, then rename it into place."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getvalue())

    def load_checkpoint(self, path: _Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint onto the CPU without running any code in it."""
        return read_checkpoint(path)


def read_checkpoint(path: _Path) -> dict[str, Any]:
    """Read a checkpoint of `pretrain`, without running any code that it may hold.

    Args:
        path: the file.

    Returns:
        Its content; under `pretrain` the names of method and backbone.

    Raises:
        ValueError: if it is no checkpoint, or not one of `pretrain`.
        OSError: if it cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read as plain data: it is damaged, no checkpoint, or "
            "holds more than tensors and plain values"
        ) from error
    if not isinstance(checkpoint, dict) or "pretrain" not in checkpoint:
        raise ValueError(f"checkpoint {path} was not written by lightly-collapse pretrain")
    return checkpoint


def check_checkpoint(path: _Path, method: str, backbone: dict[str, Any]) -> None:
    """Make sure that training can go on from a checkpoint.

    Args:
        path: the file.
        method: name of the method that is to go on.
        backbone: settings of its backbone.

    Raises:
        ValueError: if it is of another method or backbone, and as `read_checkpoint`.
        OSError: as `read_checkpoint`.
    """
    written = read_checkpoint(path)["pretrain"]
    if written["method"] != method:
        raise ValueError(f"checkpoint {path} is of the method {written['method']}, not {method}")
    if written["backbone"] != backbone:
        different = ", ".join(
            f"{key} {written['backbone'].get(key)} there and {value} here"
            for key, value in backbone.items()
            if written["backbone"].get(key) != value
        )
        raise ValueError(f"checkpoint {path} has another backbone: {different}")


def load_backbone(path: _Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained backbone of a checkpoint, for inference.

    Args:
        path: the file.

    Returns:
        The backbone in evaluation mode, without gradients, and what the checkpoint says about it.

    Raises:
        ValueError: as `read_checkpoint`, or if the weights do not fit the backbone it names.
        OSError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    about: dict[str, Any] = checkpoint["pretrain"]
    backbone = create_backbone(BackboneSettings(**about["backbone"]))
    prefix = "backbone."
    weights = {
        name.removeprefix(prefix): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint {path}: weights do not fit the backbone: {error}") from error
    return backbone.eval().requires_grad_(False), about
