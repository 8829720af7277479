"""Writing the exported files."""

import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lightly_collapse.export.backbone import Backbone, Source, find_backbone, state_of
from lightly_collapse.export.detectron2 import rename_forward
from lightly_collapse.export.resnet import ResNetShape
from lightly_collapse.export.vit import VisionTransformer, ViTShape, find_vit
from lightly_collapse.io.files import atomic_write

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_GROUPS = 8


@dataclass(frozen=True)
class Export:
    """What was written, and what was not.

    Attributes:
        weights: the weight file.
        config: the configuration beside it; None for a plain state dict.
        shape: which ResNet or vision transformer it is.
        prefix: the part of the source's names before the backbone's.
        candidates: the prefixes of all ResNets in the source.
        converted: how many tensors were written.
        left_out: the names of all others.
        is_checked: whether the source was a module and computes what a ResNet of this shape does.
        pixel_mean: mean of the channels R, G, B in 0..1, None for a plain state dict.
        pixel_std: their standard deviation, likewise.
        notes: what was changed on the way.
    """

    weights: Path
    config: Path | None
    shape: ResNetShape | ViTShape
    prefix: str
    candidates: tuple[str, ...]
    converted: int
    left_out: tuple[str, ...]
    is_checked: bool
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The same as text, one fact per line."""
        place = f"under {self.prefix!r}" if self.prefix else "at the top level"
        others = [repr(name) for name in self.candidates if name != self.prefix]
        rest = f" (also found: {', '.join(others)})" if others else ""
        lines = [
            f"backbone    {self.shape.name}, found {place}{rest}",
            f"weights     {self.weights}, {self.converted} tensors",
        ]
        if self.config is not None and self.pixel_mean and self.pixel_std:
            mean = ", ".join(f"{value:g}" for value in self.pixel_mean)
            std = ", ".join(f"{value:g}" for value in self.pixel_std)
            lines.append(f"config      {self.config}, pixel mean ({mean}), deviation ({std})")
        lines.append(f"left out    {_groups(self.left_out) or 'nothing'}")
        lines += [f"changed     {note}" for note in self.notes]
        if not self.is_checked and isinstance(self.shape, ViTShape):
            lines.append(
                f"unchecked   weights do not show the heads ({self.shape.heads} assumed), the "
                f"activation or the norms' epsilon; export the module itself to have them checked"
            )
        elif not self.is_checked:
            lines.append(
                "unchecked   weights do not show dilation, anti-aliased pooling, strides or "
                "activations; export the module itself to compare them with detectron2's"
            )
        return "\n".join(lines)


def to_detectron2(
    backbone_or_checkpoint: Source,
    path: str | os.PathLike[str],
    *,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
    transform: object = None,
    prefix: str | None = None,
    heads: int | None = None,
) -> Export:
    """Write a pretrained ResNet or ViT as detectron2 loads it, and the configuration that fits it.

    Beside `name.pkl` comes `name.yaml`: depth, groups, width, STRIDE_IN_1X1, RES2_OUT_CHANNELS,
    INPUT.FORMAT, PIXEL_MEAN and PIXEL_STD. Merge it into your configuration and set MODEL.WEIGHTS
    to the weight file; a wrong pixel mean is the usual silent mistake. A module is also run once
    beside torchvision's ResNet with the same weights, since weights alone do not show a dilation
    or another pooling.

    A plain vision transformer (timm's or torchvision's names, DINOv2's included) is written for
    ViTDet's backbone: without class token and last norm, LayerScale multiplied into the weights,
    the patch embedding resized to 16 pixels where it has another size.

    Args:
        backbone_or_checkpoint: a module that is or contains a ResNet (torchvision's or timm's), a
            state dict, or a checkpoint of any format that `io.weights.read_weights` takes.
        path: where to write; `.pkl` (arrays) or `.pth` (tensors).
        pixel_mean: mean of R, G, B that pretraining subtracted, in 0..1 as Normalize has it;
            ImageNet's, Lightly's default, unless `transform` says otherwise.
        pixel_std: the standard deviation it divided by, likewise.
        transform: the transform of pretraining; mean and deviation are read off its Normalize.
        prefix: the part of the checkpoint's names before the backbone's, such as `backbone.`;
            needed only where it holds several ResNets that are equally likely.
        heads: of a transformer's attention, where they are not one for each 64 channels and the
            source is no module that shows them.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: if there is no ResNet or plain ViT that detectron2 has (a CIFAR stem),
            a tensor of it has no place, the file name ends otherwise, or mean and deviation are
            not three numbers on the 0..1 scale.
        OSError: if a file cannot be read or written.

    Examples:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = to_detectron2(resnet18(), f"{folder}/r18.pkl")
        >>> export.shape.name, export.converted, export.config.name
        ('ResNet-18', 100, 'r18.yaml')
    """
    target = _target(path, (".pkl", ".pth"))
    mean, std = _pixels(pixel_mean, pixel_std, transform)
    source = backbone_or_checkpoint
    if not isinstance(source, torch.nn.Module):
        source = state_of(source)
    backbone: Backbone | VisionTransformer | None = find_vit(source, prefix, heads)
    if isinstance(backbone, VisionTransformer):
        arrays = {f"backbone.net.{n}": tensor.numpy() for n, tensor in backbone.state.items()}
    else:
        if heads is not None:
            raise ValueError(f"heads has no effect on a ResNet, got {heads}")
        backbone = find_backbone(source, prefix)
        arrays = rename_forward(backbone.state)
    content: dict[str, Any] = {"__author__": "lightly-collapse", "matching_heuristics": True}

    def write(file: BinaryIO) -> None:
        if target.suffix == ".pkl":
            # Protocol 4: every Python and NumPy that detectron2 runs with can read it.
            pickle.dump(content | {"model": arrays}, file, protocol=4)
        else:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            torch.save(content | {"model": tensors}, file)

    config = target.with_suffix(".yaml")
    text = _config(target.name, backbone.shape, mean, std)
    atomic_write(target, write)
    atomic_write(config, lambda file: file.write(text.encode()))
    return _export(backbone, target, config, mean, std)


def to_torchvision(
    backbone_or_checkpoint: Source, path: str | os.PathLike[str], prefix: str | None = None
) -> Export:
    """Write the backbone alone as a state dict with torchvision's names, without `fc`.

    Args:
        backbone_or_checkpoint: as for `to_detectron2`.
        path: where to write; `.pth`. Load it with `load_state_dict(..., strict=False)`.
        prefix: as for `to_detectron2`.

    Returns:
        What was written and what was left out.

    Raises:
        ValueError: as `to_detectron2` does.
        OSError: if a file cannot be read or written.

    Examples:
        >>> import tempfile
        >>> from torchvision.models import resnet18
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export = to_torchvision({"backbone." + name: tensor
        ...         for name, tensor in resnet18().state_dict().items()}, f"{folder}/r18.pth")
        >>> export.prefix
        'backbone.'
    """
    target = _target(path, (".pth",))
    backbone = find_backbone(backbone_or_checkpoint, prefix)
    atomic_write(target, lambda file: torch.save(backbone.state, file))
    return _export(backbone, target)


def normalization(transform: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the Normalize in a transform.

    Args:
        transform: a transform of torchvision (v1 or v2) or Lightly, or any object that holds one
            in its attributes.

    Returns:
        Mean and deviation, R, G, B on the 0..1 scale; (0, 0, 0) and (1, 1, 1) where nothing in the
        transform normalizes.

    Raises:
        ValueError: if its views normalize differently.

    Examples:
        >>> from lightly.transforms import SimCLRTransform
        >>> normalization(SimCLRTransform(input_size=32))
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    found: set[tuple[tuple[float, ...], tuple[float, ...]]] = set()
    seen: set[int] = set()
    stack = [transform]
    while stack:
        part = stack.pop()
        if id(part) in seen or isinstance(part, (str, bytes, int, float)):
            continue
        seen.add(id(part))
        if type(part).__name__ == "Normalize" and hasattr(part, "mean") and hasattr(part, "std"):
            found.add((_floats(part.mean), _floats(part.std)))
        elif isinstance(part, (list, tuple, set)):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif hasattr(part, "__dict__"):
            stack.extend(vars(part).values())
    if len(found) > 1:
        raise ValueError(f"transform: its views normalize differently: {sorted(found)}")
    return found.pop() if found else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _groups(names: Sequence[str]) -> str:
    """Counts of tensors by the part of the module that they belong to, in one line."""
    counters = [name for name in names if name.endswith(".num_batches_tracked")]
    parts = [name.split(".")[:-1] for name in names if name not in set(counters)]
    for depth in (None, 2, 1):
        groups = Counter(".".join(part[:depth]) for part in parts)
        if len(groups) <= _MOST_GROUPS:
            break
    shown = [f"{name} ({n})" if name else f"({n})" for name, n in groups.most_common(_MOST_GROUPS)]
    if len(groups) > _MOST_GROUPS:
        shown.append(f"{len(groups) - _MOST_GROUPS} more")
    return ", ".join([*shown, *([f"num_batches_tracked ({len(counters)})"] if counters else [])])


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _pixels(
    mean: Sequence[float] | None, std: Sequence[float] | None, transform: object
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if transform is not None:
        if mean is not None or std is not None:
            raise ValueError("transform: give it or pixel_mean and pixel_std, not both")
        mean, std = normalization(transform)
    elif (mean is None) != (std is None):
        raise ValueError("pixel_mean and pixel_std: give both or none")
    mean = _floats(IMAGENET_MEAN if mean is None else mean)
    std = _floats(IMAGENET_STD if std is None else std)
    if len(mean) != 3 or not all(-1 <= value <= 1 for value in mean):
        raise ValueError(
            f"pixel_mean must be three numbers on the 0..1 scale, as Normalize has them, got {mean}"
        )
    if len(std) != 3 or not all(0 < value <= 1 for value in std):
        raise ValueError(
            f"pixel_std must be three positive numbers on the 0..1 scale, as Normalize has them, "
            f"got {std}"
        )
    return mean, std


def _config(
    weights: str, shape: ResNetShape | ViTShape, mean: Sequence[float], std: Sequence[float]
) -> str:
    def scaled(values: Sequence[float]) -> str:
        return "[" + ", ".join(f"{round(255 * value, 6)!r}" for value in values) + "]"

    return f"""\
# {shape.name}: what detectron2 must know about {weights}. Pixels on the 0..255 scale.
VERSION: 2
MODEL:
{_section(shape)}
  PIXEL_MEAN: {scaled(mean)}
  PIXEL_STD: {scaled(std)}
INPUT:
  FORMAT: "RGB"
"""


def _section(shape: ResNetShape | ViTShape) -> str:
    values: dict[str, Any]
    if isinstance(shape, ViTShape):
        name = "VIT"
        values = {
            "PATCH_SIZE": shape.patch_size,
            "EMBED_DIM": shape.width,
            "DEPTH": shape.depth,
            "NUM_HEADS": shape.heads,
            "MLP_RATIO": shape.mlp_ratio,
            "PRETRAIN_SIZE": shape.pretrain_size,
            "GLOBAL_BLOCKS": list(shape.global_blocks),
        }
    else:
        name = "RESNETS"
        values = {
            "DEPTH": shape.depth,
            "NUM_GROUPS": shape.groups,
            "WIDTH_PER_GROUP": shape.width_per_group,
            "RES2_OUT_CHANNELS": shape.res2_out_channels,
            "STRIDE_IN_1X1": False,
        }
    return "\n".join([f"  {name}:", *(f"    {key}: {value}" for key, value in values.items())])


def _target(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    target = Path(path)
    if target.suffix not in suffixes:
        raise ValueError(f"path: must end in {' or '.join(suffixes)}, got {target.name!r}")
    return target


def _export(
    backbone: Backbone | VisionTransformer,
    target: Path,
    config: Path | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Export:
    return Export(
        weights=target,
        config=config,
        shape=backbone.shape,
        prefix=backbone.prefix,
        candidates=backbone.candidates,
        converted=len(backbone.state),
        left_out=backbone.left_out,
        is_checked=backbone.is_checked,
        pixel_mean=mean,
        pixel_std=std,
        notes=backbone.notes if isinstance(backbone, VisionTransformer) else (),
    )
