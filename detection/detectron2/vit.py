"""detectron2's ViTDet backbone, built from a configuration file.

detectron2 itself builds it from Python configurations only (projects/ViTDet).
"""

from functools import partial
from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import ViT
from torch import nn


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_vit_pyramid_backbone(cfg: Any, _input_shape: Any = None) -> Any:
    """Plain vision transformer and simple feature pyramid, levels p2 to p6.

    Args:
        cfg: with the section MODEL.VIT.

    Raises:
        ValueError: if the patch size is not 16, or a part of the transformer is to be frozen.
    """
    vit = cfg.MODEL.VIT
    if vit.PATCH_SIZE != 16:
        raise ValueError(
            f"config: MODEL.VIT.PATCH_SIZE must be 16 for the pyramid, got {vit.PATCH_SIZE}"
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT not in {0, 5}:
        raise ValueError(
            f"config: MODEL.BACKBONE.FREEZE_AT must be 0 or 5 (all) for a ViT, got "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}"
        )
    net = ViT(
        patch_size=vit.PATCH_SIZE,
        embed_dim=vit.EMBED_DIM,
        depth=vit.DEPTH,
        num_heads=vit.NUM_HEADS,
        mlp_ratio=vit.MLP_RATIO,
        drop_path_rate=vit.DROP_PATH,
        # 1e-6 in timm's and torchvision's transformers; nn.LayerNorm's own default is 1e-5.
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=vit.WINDOW_SIZE,
        window_block_indexes=[i for i in range(vit.DEPTH) if i not in vit.GLOBAL_BLOCKS],
        pretrain_img_size=vit.PRETRAIN_SIZE,
        pretrain_use_cls_token=False,
        out_feature="last_feat",
    )
    net.requires_grad_(cfg.MODEL.BACKBONE.FREEZE_AT == 0)
    return SimpleFeaturePyramid(
        net=net,
        in_feature="last_feat",
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
    )
