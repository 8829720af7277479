"""torchvision's Faster R-CNN with a feature pyramid, as the configuration describes it."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from detection.config import Config
from lightly_collapse.export import ResNetShape, read_detectron2, torchvision_state_dict

_LEVELS = ["0", "1", "2", "3"]


class Detector(FasterRCNN):  # type: ignore[misc]
    """Faster R-CNN whose image sizes differ between training and testing."""

    def __init__(self, config: Config, backbone: nn.Module, **settings: Any) -> None:
        sizes = config["INPUT"]
        self._sizes = {
            True: (tuple(sizes["MIN_SIZE_TRAIN"]), sizes["MAX_SIZE_TRAIN"]),
            False: ((sizes["MIN_SIZE_TEST"],), sizes["MAX_SIZE_TEST"]),
        }
        super().__init__(backbone, **settings)

    def train(self, mode: bool = True) -> "Detector":
        """Switch mode, and with it the sizes that images are scaled to."""
        super().train(mode)
        self.transform.min_size, self.transform.max_size = self._sizes[mode]
        return self


def build_model(config: Config) -> Detector:
    """The detector, with the weights that MODEL.WEIGHTS names, or random ones.

    Raises:
        ValueError: if the configuration cannot be built, or the weights are corrupt or those of
            another network.
        OSError: if the weight file cannot be read.
    """
    settings = config["MODEL"]
    resnets, rpn, heads = settings["RESNETS"], settings["RPN"], settings["ROI_HEADS"]
    backbone = _build_backbone(config)
    pooler = MultiScaleRoIAlign(
        _LEVELS, output_size=settings["ROI_BOX_HEAD"]["POOLER_RESOLUTION"], sampling_ratio=0
    )
    width = settings["ROI_BOX_HEAD"]["FC_DIM"]
    cells = settings["ROI_BOX_HEAD"]["POOLER_RESOLUTION"] ** 2
    anchors, ratios = (settings["ANCHOR_GENERATOR"][k] for k in ("SIZES", "ASPECT_RATIOS"))
    if len(anchors) != 5 or len(ratios) not in {1, 5}:
        raise ValueError(
            f"config: MODEL.ANCHOR_GENERATOR needs SIZES for 5 levels and ASPECT_RATIOS for 1 or "
            f"5, got {len(anchors)} and {len(ratios)}"
        )
    detector = Detector(
        config,
        backbone,
        image_mean=[value / 255 for value in settings["PIXEL_MEAN"]],
        image_std=[value / 255 for value in settings["PIXEL_STD"]],
        rpn_anchor_generator=AnchorGenerator(
            tuple(map(tuple, anchors)), tuple(map(tuple, ratios * (5 // len(ratios))))
        ),
        rpn_pre_nms_top_n_train=rpn["PRE_NMS_TOPK_TRAIN"],
        rpn_pre_nms_top_n_test=rpn["PRE_NMS_TOPK_TEST"],
        rpn_post_nms_top_n_train=rpn["POST_NMS_TOPK_TRAIN"],
        rpn_post_nms_top_n_test=rpn["POST_NMS_TOPK_TEST"],
        rpn_nms_thresh=rpn["NMS_THRESH"],
        rpn_bg_iou_thresh=rpn["IOU_THRESHOLDS"][0],
        rpn_fg_iou_thresh=rpn["IOU_THRESHOLDS"][1],
        rpn_batch_size_per_image=rpn["BATCH_SIZE_PER_IMAGE"],
        rpn_positive_fraction=rpn["POSITIVE_FRACTION"],
        box_roi_pool=pooler,
        box_head=TwoMLPHead(settings["FPN"]["OUT_CHANNELS"] * cells, width),
        box_predictor=FastRCNNPredictor(width, heads["NUM_CLASSES"] + 1),
        box_score_thresh=heads["SCORE_THRESH_TEST"],
        box_nms_thresh=heads["NMS_THRESH_TEST"],
        box_detections_per_img=config["TEST"]["DETECTIONS_PER_IMAGE"],
        box_fg_iou_thresh=heads["IOU_THRESHOLDS"][0],
        box_bg_iou_thresh=heads["IOU_THRESHOLDS"][0],
        box_batch_size_per_image=heads["BATCH_SIZE_PER_IMAGE"],
        box_positive_fraction=heads["POSITIVE_FRACTION"],
    )
    if settings["WEIGHTS"]:
        _load(detector, settings["WEIGHTS"])
    _freeze(detector.backbone.body, settings["BACKBONE"]["FREEZE_AT"], resnets["NORM"])
    return detector


def _build_backbone(config: Config) -> BackboneWithFPN:
    settings = config["MODEL"]
    resnets = settings["RESNETS"]
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
    if resnets["NORM"] not in {"BN", "SyncBN", "FrozenBN"}:
        raise ValueError(
            f"config: MODEL.RESNETS.NORM must be BN, SyncBN or FrozenBN, got {resnets['NORM']!r}"
        )
    # One process: SyncBN is BN.
    norms: dict[str, Callable[..., nn.Module] | None] = {
        "": None,
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.BatchNorm2d,
    }
    if settings["FPN"]["NORM"] not in norms:
        raise ValueError(
            f"config: MODEL.FPN.NORM must be '', BN or SyncBN, got {settings['FPN']['NORM']!r}"
        )
    return BackboneWithFPN(
        shape.build(),
        {f"layer{i + 1}": level for i, level in enumerate(_LEVELS)},
        [shape.res2_out_channels * 2**i for i in range(4)],
        settings["FPN"]["OUT_CHANNELS"],
        norm_layer=norms[settings["FPN"]["NORM"]],
    )


def _load(detector: Detector, path: str | os.PathLike[str]) -> None:
    """Load an exported backbone, or a whole detector that a run of this trainer left behind."""
    arrays = read_detectron2(path)
    is_whole = any(name.startswith("backbone.body.") for name in arrays)
    target: nn.Module = detector if is_whole else detector.backbone.body
    state = (
        {name: torch.from_numpy(array) for name, array in arrays.items()}
        if is_whole
        else torchvision_state_dict(arrays)
    )
    try:
        missing, unexpected = target.load_state_dict(state, strict=False)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise ValueError(f"weights {path}: do not fit the configured network: {line}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"weights {path}: do not fit the configured network: {len(missing)} tensors missing "
            f"({', '.join(missing[:2])}), {len(unexpected)} too many ({', '.join(unexpected[:2])})"
        )


def _freeze(body: nn.Module, freeze_at: int, norm: str) -> None:
    """Fix the first stages (1 is the stem, 2 also res2, ...), or with FrozenBN all BatchNorms."""
    parts = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
    for part in (name for names in parts[:freeze_at] for name in names):
        for parameter in body.get_submodule(part).parameters():
            parameter.requires_grad = False
    frozen = {
        name for names in (parts if norm == "FrozenBN" else parts[:freeze_at]) for name in names
    }
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and name.split(".")[0] in frozen:
            fixed = FrozenBatchNorm2d(module.num_features, eps=module.eps)
            fixed.load_state_dict(module.state_dict())
            owner, _, last = name.rpartition(".")
            setattr(body.get_submodule(owner), last, fixed)
