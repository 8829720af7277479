"""torchvision's detectors, as the configuration describes them."""

from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from detection.torchvision.backbones import (
    AlignedPooler,
    Res4,
    Res5Head,
    build_pyramid,
    freeze_resnet,
)
from detection.torchvision.config import Config, detector_of
from detection.torchvision.vit import build_vit_pyramid

_LEVELS = ["0", "1", "2", "3"]


class _TwoSizes:
    """The images are scaled to other sizes for training than for testing."""

    sizes: dict[bool, tuple[tuple[int, ...], int]]
    transform: Any

    def train(self, mode: bool = True) -> Any:
        """Switch mode, and with it the sizes that images are scaled to."""
        super().train(mode)  # type: ignore[misc]
        self.transform.min_size, self.transform.max_size = self.sizes[mode]
        return self


class _FasterRCNN(_TwoSizes, FasterRCNN):  # type: ignore[misc]
    pass


class _MaskRCNN(_TwoSizes, MaskRCNN):  # type: ignore[misc]
    pass


class _RetinaNet(_TwoSizes, RetinaNet):  # type: ignore[misc]
    pass


def build_model(config: Config) -> nn.Module:
    """The detector, with random weights and nothing frozen.

    Raises:
        ValueError: if torchvision cannot build what the configuration describes.
    """
    kind = detector_of(config)
    if kind == "RetinaNet":
        detector = _build_retinanet(config)
    elif kind == "C4":
        detector = _build_c4(config)
    else:
        pyramid = build_vit_pyramid(config) if kind == "ViT" else build_pyramid(config, 2)
        detector = _build_fpn(config, pyramid)
    sizes = config["INPUT"]
    detector.sizes = {
        True: (tuple(sizes["MIN_SIZE_TRAIN"]), sizes["MAX_SIZE_TRAIN"]),
        False: ((sizes["MIN_SIZE_TEST"],), sizes["MAX_SIZE_TEST"]),
    }
    return detector.train()


def freeze(config: Config, detector: nn.Module) -> None:
    """Fix what MODEL.BACKBONE.FREEZE_AT and FrozenBN ask for, after the weights are loaded.

    Raises:
        ValueError: if the backbone cannot be frozen up to there.
    """
    freeze_at, norm = config["MODEL"]["BACKBONE"]["FREEZE_AT"], config["MODEL"]["RESNETS"]["NORM"]
    if detector_of(config) == "ViT":
        if freeze_at not in {0, 5}:
            raise ValueError(
                f"config: MODEL.BACKBONE.FREEZE_AT must be 0 or 5 (all) for a ViT, got {freeze_at}"
            )
        detector.get_submodule("backbone.net").requires_grad_(freeze_at == 0)
        return
    freeze_resnet(detector.get_submodule("backbone.body"), freeze_at, norm)
    if detector_of(config) == "C4":
        freeze_resnet(detector.get_submodule("roi_heads.box_head"), 0, norm)


def _anchors(config: Config, levels: int) -> AnchorGenerator:
    settings = config["MODEL"]["ANCHOR_GENERATOR"]
    sizes, ratios = settings["SIZES"], settings["ASPECT_RATIOS"]
    if len(sizes) != levels or len(ratios) not in {1, levels}:
        raise ValueError(
            f"config: MODEL.ANCHOR_GENERATOR needs SIZES for {levels} levels and ASPECT_RATIOS for "
            f"1 or {levels}, got {len(sizes)} and {len(ratios)}"
        )
    ratios = ratios * (levels // len(ratios))
    return AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))


def _pixels(config: Config) -> dict[str, Any]:
    return {
        "image_mean": [value / 255 for value in config["MODEL"]["PIXEL_MEAN"]],
        "image_std": [value / 255 for value in config["MODEL"]["PIXEL_STD"]],
    }


def _two_stages(config: Config) -> dict[str, Any]:
    rpn, heads = config["MODEL"]["RPN"], config["MODEL"]["ROI_HEADS"]
    return {
        **_pixels(config),
        "rpn_pre_nms_top_n_train": rpn["PRE_NMS_TOPK_TRAIN"],
        "rpn_pre_nms_top_n_test": rpn["PRE_NMS_TOPK_TEST"],
        "rpn_post_nms_top_n_train": rpn["POST_NMS_TOPK_TRAIN"],
        "rpn_post_nms_top_n_test": rpn["POST_NMS_TOPK_TEST"],
        "rpn_nms_thresh": rpn["NMS_THRESH"],
        "rpn_bg_iou_thresh": rpn["IOU_THRESHOLDS"][0],
        "rpn_fg_iou_thresh": rpn["IOU_THRESHOLDS"][1],
        "rpn_batch_size_per_image": rpn["BATCH_SIZE_PER_IMAGE"],
        "rpn_positive_fraction": rpn["POSITIVE_FRACTION"],
        "box_score_thresh": heads["SCORE_THRESH_TEST"],
        "box_nms_thresh": heads["NMS_THRESH_TEST"],
        "box_detections_per_img": config["TEST"]["DETECTIONS_PER_IMAGE"],
        "box_fg_iou_thresh": heads["IOU_THRESHOLDS"][0],
        "box_bg_iou_thresh": heads["IOU_THRESHOLDS"][0],
        "box_batch_size_per_image": heads["BATCH_SIZE_PER_IMAGE"],
        "box_positive_fraction": heads["POSITIVE_FRACTION"],
    }


def _build_fpn(config: Config, backbone: nn.Module) -> Any:
    model = config["MODEL"]
    box, classes = model["ROI_BOX_HEAD"], model["ROI_HEADS"]["NUM_CLASSES"] + 1
    channels = model["FPN"]["OUT_CHANNELS"]
    settings = {
        **_two_stages(config),
        "rpn_anchor_generator": _anchors(config, 5),
        "box_roi_pool": _pooler(box["POOLER_RESOLUTION"]),
        "box_head": TwoMLPHead(channels * box["POOLER_RESOLUTION"] ** 2, box["FC_DIM"]),
        "box_predictor": FastRCNNPredictor(box["FC_DIM"], classes),
    }
    if not model["MASK_ON"]:
        return _FasterRCNN(backbone, **settings)
    mask = model["ROI_MASK_HEAD"]
    if mask["NUM_CONV"] < 1:
        raise ValueError(f"config: MODEL.ROI_MASK_HEAD.NUM_CONV must be 1 at least: {mask}")
    return _MaskRCNN(
        backbone,
        **settings,
        mask_roi_pool=_pooler(mask["POOLER_RESOLUTION"]),
        mask_head=MaskRCNNHeads(channels, (mask["CONV_DIM"],) * mask["NUM_CONV"], 1),
        mask_predictor=MaskRCNNPredictor(mask["CONV_DIM"], mask["CONV_DIM"], classes),
    )


def _pooler(resolution: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(_LEVELS, output_size=resolution, sampling_ratio=0)


def _build_c4(config: Config) -> Any:
    heads = config["MODEL"]["ROI_HEADS"]
    if config["MODEL"]["MASK_ON"]:
        raise ValueError(
            "config: MODEL.MASK_ON must be False for torchvision's C4 detector; with masks that "
            "detector is what detection.train_net is for"
        )
    if heads["NAME"] not in {"Res5ROIHeads", "Res5ROIHeadsExtraNorm"}:
        raise ValueError(
            f"config: MODEL.ROI_HEADS.NAME must be Res5ROIHeads or Res5ROIHeadsExtraNorm for "
            f"torchvision's C4 detector, got {heads['NAME']!r}"
        )
    backbone = Res4(config)
    layer4, channels = backbone.head, 2 * backbone.out_channels
    del backbone.head
    return _FasterRCNN(
        backbone,
        **_two_stages(config),
        rpn_anchor_generator=_anchors(config, 1),
        box_roi_pool=AlignedPooler(config["MODEL"]["ROI_BOX_HEAD"]["POOLER_RESOLUTION"]),
        box_head=Res5Head(layer4, channels, heads["NAME"] == "Res5ROIHeadsExtraNorm"),
        box_predictor=FastRCNNPredictor(channels, heads["NUM_CLASSES"] + 1),
    )


def _build_retinanet(config: Config) -> Any:
    settings = config["MODEL"]["RETINANET"]
    fixed = {
        "NUM_CONVS": 4,
        "PRIOR_PROB": 0.01,
        "FOCAL_LOSS_GAMMA": 2.0,
        "FOCAL_LOSS_ALPHA": 0.25,
    }
    for key, wanted in fixed.items():
        if settings[key] != wanted:
            raise ValueError(
                f"config: MODEL.RETINANET.{key} must be {wanted} for torchvision's RetinaNet, got "
                f"{settings[key]}"
            )
    return _RetinaNet(
        build_pyramid(config, 3),
        # Labels begin at 1, as in the other detectors; output 0 learns to stay silent.
        num_classes=settings["NUM_CLASSES"] + 1,
        **_pixels(config),
        anchor_generator=_anchors(config, 5),
        score_thresh=settings["SCORE_THRESH_TEST"],
        nms_thresh=settings["NMS_THRESH_TEST"],
        detections_per_img=config["TEST"]["DETECTIONS_PER_IMAGE"],
        bg_iou_thresh=settings["IOU_THRESHOLDS"][0],
        fg_iou_thresh=settings["IOU_THRESHOLDS"][1],
        topk_candidates=settings["TOPK_CANDIDATES_TEST"],
    )
