"""Backbones of the torchvision detectors: ResNet with a pyramid, ResNet up to res4."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from typing_extensions import override

from detection.torchvision.config import Config
from lightly_collapse.export import ResNetShape

# One process: every synchronised BatchNorm is BatchNorm.
_NORMS: dict[str, Callable[..., nn.Module] | None] = {
    "": None,
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.BatchNorm2d,
    "naiveSyncBN": nn.BatchNorm2d,
}
_STEM_AND_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def resnet_shape(config: Config) -> ResNetShape:
    """The ResNet that a configuration asks for.

    Raises:
        ValueError: if torchvision has no such ResNet.
    """
    resnets = config["MODEL"]["RESNETS"]
    if resnets["DEPTH"] not in {18, 34, 50, 101, 152}:
        raise ValueError(
            f"config: MODEL.RESNETS.DEPTH must be 18, 34, 50, 101 or 152, got {resnets['DEPTH']}"
        )
    shape = ResNetShape(resnets["DEPTH"], resnets["NUM_GROUPS"], resnets["WIDTH_PER_GROUP"])
    if resnets["RES2_OUT_CHANNELS"] != shape.res2_out_channels:
        raise ValueError(
            f"config: MODEL.RESNETS.RES2_OUT_CHANNELS must be {shape.res2_out_channels} for "
            f"depth {shape.depth}, got {resnets['RES2_OUT_CHANNELS']}"
        )
    if resnets["NORM"] not in {"BN", "SyncBN", "naiveSyncBN", "FrozenBN"}:
        raise ValueError(
            f"config: MODEL.RESNETS.NORM must be BN, SyncBN, naiveSyncBN or FrozenBN, got "
            f"{resnets['NORM']!r}"
        )
    return shape


def build_pyramid(config: Config, first_stage: int) -> BackboneWithFPN:
    """ResNet and feature pyramid.

    Args:
        config: of the run.
        first_stage: 2 for Faster R-CNN's levels p2 to p6, 3 for RetinaNet's p3 to p7.

    Raises:
        ValueError: if the configuration asks for another one than torchvision's.
    """
    fpn = config["MODEL"]["FPN"]
    if fpn["NORM"] not in _NORMS:
        raise ValueError(
            f"config: MODEL.FPN.NORM must be '', BN, SyncBN or naiveSyncBN, got {fpn['NORM']!r}"
        )
    shape = resnet_shape(config)
    stages = range(first_stage, 6)
    channels = [shape.res2_out_channels * 2 ** (stage - 2) for stage in stages]
    width = fpn["OUT_CHANNELS"]
    return BackboneWithFPN(
        shape.build(),
        {f"layer{stage - 1}": str(i) for i, stage in enumerate(stages)},
        channels,
        width,
        extra_blocks=LastLevelMaxPool() if first_stage == 2 else LastLevelP6P7(channels[-1], width),
        norm_layer=_NORMS[fpn["NORM"]],
    )


class Res4(nn.Module):
    """A ResNet up to res4, whose last stage is the detector's box head.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = resnet_shape(config)
        resnet = shape.build()
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})
        self.out_channels = 4 * shape.res2_out_channels
        self.head = resnet.layer4  # taken over by `Res5Head`

    @override
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The one feature map, of stride 16."""
        return OrderedDict(self.body(images))


class Res5Head(nn.Module):
    """res5 on every region, an extra BatchNorm where asked for, and the mean over the region.

    The features of a self-supervised backbone have another scale than those of a supervised one,
    for which the learning rates were chosen; the norm evens that out (MoCo, section 4.2).

    Args:
        layer4: torchvision's name of res5.
        channels: of its output.
        extra_norm: whether a BatchNorm follows.
    """

    def __init__(self, layer4: nn.Module, channels: int, extra_norm: bool) -> None:
        super().__init__()
        self.layer4 = layer4
        self.norm = nn.BatchNorm2d(channels) if extra_norm else nn.Identity()

    @override
    def forward(self, regions: Tensor) -> Tensor:
        """(regions, channels, 14, 14) to (regions, channels)."""
        return self.norm(self.layer4(regions)).mean(dim=(2, 3))


class AlignedPooler(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign on one feature map with half-pixel centres, as detectron2's ROIAlignV2.

    Its base samples half a feature cell off.

    Args:
        resolution: height and width of the output.
        stride: pixels of the image for each cell of the feature map.
    """

    def __init__(self, resolution: int, stride: int = 16) -> None:
        super().__init__(["0"], resolution, 0)
        self._stride = stride

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _sizes: Any) -> Tensor:
        """Features of all boxes of all images: (boxes, channels, resolution, resolution)."""
        pooled: Tensor = roi_align(
            features["0"], boxes, self.output_size, 1 / self._stride, 0, aligned=True
        )
        return pooled


def freeze_resnet(body: nn.Module, freeze_at: int, norm: str) -> None:
    """Fix the first stages (1 is the stem, 2 also res2, ..., 5 all), or every BatchNorm.

    Args:
        body: the ResNet, or the part of it that the detector has as its backbone.
        freeze_at: MODEL.BACKBONE.FREEZE_AT.
        norm: MODEL.RESNETS.NORM; FrozenBN fixes the statistics and weights of all BatchNorms.
    """
    parts = _STEM_AND_STAGES[:freeze_at]
    frozen = {name for names in parts for name in names}
    for name, parameter in body.named_parameters():
        if name.split(".")[0] in frozen:
            parameter.requires_grad = False
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and (
            norm == "FrozenBN" or name.split(".")[0] in frozen
        ):
            fixed = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            fixed.load_state_dict(module.state_dict())
            owner, _, last = name.rpartition(".")
            setattr(body.get_submodule(owner), last, fixed)
