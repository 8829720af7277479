"""Which ResNet a state dict is, read off its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

_DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet as detectron2 describes one.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        groups: groups of the 3x3 convolutions (32 or 64 in a ResNeXt, else 1).
        width_per_group: channels of a group in the first stage (64 in a plain ResNet).
    """

    depth: int
    groups: int = 1
    width_per_group: int = 64

    @property
    def is_bottleneck(self) -> bool:
        """Whether the blocks have three convolutions (depth 50 and above)."""
        return self.depth >= 50

    @property
    def res2_out_channels(self) -> int:
        """Channels of the first stage's output."""
        return 256 if self.is_bottleneck else 64

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of the four stages."""
        kind = "bottleneck" if self.is_bottleneck else "basic"
        return next(b for (k, b), depth in _DEPTHS.items() if (k, depth) == (kind, self.depth))

    @property
    def name(self) -> str:
        """A readable name.

        Examples:
            >>> ResNetShape(50, groups=32, width_per_group=4).name
            'ResNeXt-50 32x4d'
            >>> ResNetShape(50, width_per_group=128).name
            'wide ResNet-50 (width 128)'
        """
        if self.groups > 1:
            return f"ResNeXt-{self.depth} {self.groups}x{self.width_per_group}d"
        if self.width_per_group != 64:
            return f"wide ResNet-{self.depth} (width {self.width_per_group})"
        return f"ResNet-{self.depth}"

    def build(self) -> ResNet:
        """Torchvision's ResNet of this shape, without its classifier, on the current device."""
        model = ResNet(
            Bottleneck if self.is_bottleneck else BasicBlock,
            list(self.blocks),
            groups=self.groups,
            width_per_group=self.width_per_group,
            num_classes=1,
        )
        model.fc = torch.nn.Identity()
        return model


def resnet_shape(state: Mapping[str, Tensor]) -> ResNetShape:
    """Tell the ResNet from its state dict (torchvision's names), and check every tensor of it.

    Args:
        state: names such as `conv1.weight` and `layer1.0.bn2.running_var`; `fc` and
            `num_batches_tracked` are optional.

    Returns:
        The shape.

    Raises:
        ValueError: if this is no ResNet that detectron2 has: another stem, another number of
            blocks, a tensor too many, too few, or of another shape.

    Examples:
        >>> from torchvision.models import resnext50_32x4d
        >>> resnet_shape(resnext50_32x4d().state_dict())
        ResNetShape(depth=50, groups=32, width_per_group=4)
    """
    _check_stem(state)
    shape = _shape_of_blocks(state)
    with torch.device("meta"):
        expected = shape.build().state_dict()
    given = {name for name in state if not is_left_out(name)}
    wanted = {name for name in expected if not is_left_out(name)}
    if unexpected := sorted(given - wanted):
        raise ValueError(
            f"backbone: {_some(unexpected)} of it have no place in a {shape.name}; "
            f"squeeze-and-excitation, average-pool shortcuts and the like cannot be exported"
        )
    if missing := sorted(wanted - given):
        raise ValueError(f"backbone: {_some(missing)} of a {shape.name} are missing")
    for name in sorted(wanted):
        if state[name].shape != expected[name].shape:
            raise ValueError(
                f"backbone: {name} has shape {tuple(state[name].shape)}, a {shape.name} needs "
                f"{tuple(expected[name].shape)}"
            )
    return shape


def is_left_out(name: str) -> bool:
    """Whether a ResNet's tensor has no place in a detector: classifier and batch counter."""
    return name.startswith("fc.") or name.endswith(".num_batches_tracked")


def _check_stem(state: Mapping[str, Tensor]) -> None:
    if "conv1.weight" not in state:
        raise ValueError(
            "backbone: no conv1.weight; a stem of several convolutions (ResNet-C, ResNet-D) has "
            "no counterpart in detectron2's ResNet, which starts with one 7x7 convolution"
        )
    kernel = tuple(state["conv1.weight"].shape)
    if kernel[2:] == (3, 3):
        has_four = any(name.startswith("layer4.") for name in state)
        stages = "" if has_four else " and four stages, as resnet18 and resnet50 have"
        raise ValueError(
            f"backbone: conv1 is 3x3 (shape {kernel}): a CIFAR stem, made for images of 32 pixels; "
            f"detectron2's ResNet starts with a 7x7 convolution of stride 2 and max-pooling, so "
            f"these weights cannot be moved into it: pretrain with the ImageNet stem{stages}"
        )
    if kernel[1:] == (3, 7, 7) and kernel[0] != 64:
        raise ValueError(
            f"backbone: conv1 has {kernel[0]} filters (shape {kernel}): a ResNet of width "
            f"{kernel[0]}; detectron2's ResNets and this package's detection configurations have "
            f"width 64: pretrain with width 64"
        )
    if kernel != (64, 3, 7, 7):
        raise ValueError(f"backbone: conv1 must have shape (64, 3, 7, 7), got {kernel}")


def _shape_of_blocks(state: Mapping[str, Tensor]) -> ResNetShape:
    counts = [0, 0, 0, 0]
    for name in state:
        if match := re.match(r"layer([1-4])\.(\d{1,3})\.conv1\.weight$", name):
            stage = int(match[1]) - 1
            counts[stage] = max(counts[stage], int(match[2]) + 1)
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    depth = _DEPTHS.get((kind, tuple(counts)))
    if depth is None:
        known = ", ".join(f"ResNet-{d} {list(blocks)} {k}" for (k, blocks), d in _DEPTHS.items())
        raise ValueError(f"backbone: {counts} {kind} blocks; detectron2 knows {known}")
    if kind == "basic":
        return ResNetShape(depth)
    kernel = state.get("layer1.0.conv2.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[0] % max(kernel.shape[1], 1):
        raise ValueError("backbone: layer1.0.conv2.weight is missing or no grouped convolution")
    return ResNetShape(depth, kernel.shape[0] // kernel.shape[1], kernel.shape[1])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
