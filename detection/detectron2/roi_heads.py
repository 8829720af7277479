"""The Res5 head of the self-supervised literature's detectors."""

from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
    """detectron2's C4 head with one more BatchNorm after res5 (He et al., MoCo, section 4.2).

    The features of a self-supervised backbone have another scale than those of a supervised one,
    for which detectron2's learning rates were chosen; the norm evens that out.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        block, channels = super()._build_res5_block(cfg)
        block.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return block, channels
