"""Torchvision's names and detectron2's, in both directions."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightly_collapse.export.backbone import Source, find_backbone

Array = npt.NDArray[np.float32]

_FORWARD = (
    (re.compile(r"conv1\.weight"), r"stem.conv1.weight"),
    (re.compile(r"bn1\.(\w+)"), r"stem.conv1.norm.\1"),
    (re.compile(r"layer(\d)\.(\d+)\.conv(\d)\.weight"), r"res{}.\2.conv\3.weight"),
    (re.compile(r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)"), r"res{}.\2.conv\3.norm.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.0\.weight"), r"res{}.\2.shortcut.weight"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)"), r"res{}.\2.shortcut.norm.\3"),
)
_BACKWARD = (
    (re.compile(r"stem\.conv1\.weight"), r"conv1.weight"),
    (re.compile(r"stem\.conv1\.norm\.(\w+)"), r"bn1.\1"),
    (re.compile(r"res(\d)\.(\d+)\.conv(\d)\.weight"), r"layer{}.\2.conv\3.weight"),
    (re.compile(r"res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)"), r"layer{}.\2.bn\3.\4"),
    (re.compile(r"res(\d)\.(\d+)\.shortcut\.weight"), r"layer{}.\2.downsample.0.weight"),
    (re.compile(r"res(\d)\.(\d+)\.shortcut\.norm\.(\w+)"), r"layer{}.\2.downsample.1.\3"),
)


def detectron2_state_dict(backbone: Source, prefix: str | None = None) -> dict[str, Array]:
    """The backbone's weights under detectron2's names.

    torchvision `layer{1..4}` -> `res{2..5}`, `bn{i}` -> `conv{i}.norm`, `downsample.0` and `.1` ->
    `shortcut` and `shortcut.norm`, `conv1` and `bn1` -> `stem.conv1` and `stem.conv1.norm`.

    Args:
        backbone: a torchvision or timm ResNet, a module that contains one, a state dict, or the
            path of a checkpoint.
        prefix: what stands before the backbone's names; see `to_detectron2`.

    Returns:
        float32 arrays by name, without the classifier and `num_batches_tracked`.

    Raises:
        ValueError: if there is no ResNet that detectron2 has, or a tensor has no place in it.

    Examples:
        >>> from torchvision.models import resnet18
        >>> weights = detectron2_state_dict(resnet18())
        >>> weights["res3.0.shortcut.weight"].shape
        (128, 64, 1, 1)
    """
    return rename_forward(find_backbone(backbone, prefix).state)


def rename_forward(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """Torchvision's names to detectron2's; tensors to arrays."""
    return {_rename(name, _FORWARD, +1): tensor.numpy() for name, tensor in state.items()}


def torchvision_state_dict(weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """The way back: detectron2's backbone names to torchvision's, arrays to tensors.

    Args:
        weights: arrays by detectron2's names, as `detectron2_state_dict` gives them.

    Returns:
        A state dict for `torchvision.models.resnet*`, without `fc` and `num_batches_tracked`.

    Raises:
        ValueError: if a name is not one of a detectron2 ResNet.

    Examples:
        >>> import numpy as np
        >>> list(torchvision_state_dict({"res5.1.conv2.norm.bias": np.zeros(8, "float32")}))
        ['layer4.1.bn2.bias']
    """
    return {
        _rename(name, _BACKWARD, -1): torch.from_numpy(np.array(array))
        for name, array in weights.items()
    }


def _rename(name: str, rules: tuple[tuple[re.Pattern[str], str], ...], shift: int) -> str:
    for pattern, replacement in rules:
        if match := pattern.fullmatch(name):
            stage = int(match[1]) + shift if "{}" in replacement else ""
            return match.expand(replacement.replace("{}", str(stage)))
    raise ValueError(f"weights: {name} is no tensor of a ResNet backbone")
