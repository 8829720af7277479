"""The configuration of the torchvision trainer: which keys it honours, which detectors it builds.

A key that it could not honour is an error, never ignored.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detection.config import (
    DETECTOR_OF,
    OUR_DEFAULTS,
    apply_arguments,
    fragment_beside,
    read_overrides,
    read_values,
)

Config = dict[str, Any]

# detectron2's defaults, for every key that the torchvision trainer honours.
_DEFAULTS: Config = {
    "MODEL": {
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "MASK_ON": False,
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "RESNETS": {
            "OUT_FEATURES": ["res4"],
            "DEPTH": 50,
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            "RES2_OUT_CHANNELS": 256,
            "NORM": "FrozenBN",
        },
        "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": ""},
        "VIT": {},
        "ANCHOR_GENERATOR": {
            "SIZES": [[32, 64, 128, 256, 512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        },
        "RPN": {
            "IN_FEATURES": ["res4"],
            "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000,
            "POST_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
            "BATCH_SIZE_PER_IMAGE": 256,
            "POSITIVE_FRACTION": 0.5,
            "IOU_THRESHOLDS": [0.3, 0.7],
        },
        "ROI_HEADS": {
            "NAME": "Res5ROIHeads",
            "IN_FEATURES": ["res4"],
            "NUM_CLASSES": 80,
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "IOU_THRESHOLDS": [0.5],
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {"NAME": "", "NUM_FC": 0, "FC_DIM": 1024, "POOLER_RESOLUTION": 14},
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "POOLER_RESOLUTION": 14,
        },
        "RETINANET": {
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CLASSES": 80,
            "NUM_CONVS": 4,
            "IOU_THRESHOLDS": [0.4, 0.5],
            "PRIOR_PROB": 0.01,
            "SCORE_THRESH_TEST": 0.05,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.5,
            "FOCAL_LOSS_GAMMA": 2.0,
            "FOCAL_LOSS_ALPHA": 0.25,
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": [800],
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",
    },
    "DATASETS": {"TRAIN": [], "TEST": [], "ROOT": "", "CLASSES": []},
    "DATALOADER": {"NUM_WORKERS": 4, "FILTER_EMPTY_ANNOTATIONS": True},
    "SOLVER": {
        "IMS_PER_BATCH": 16,
        "BASE_LR": 0.001,
        "MAX_ITER": 40000,
        "STEPS": [30000],
        "GAMMA": 0.1,
        "WARMUP_ITERS": 1000,
        "WARMUP_FACTOR": 0.001,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "CHECKPOINT_PERIOD": 5000,
    },
    "TEST": {
        "EVAL_PERIOD": 0,
        "DETECTIONS_PER_IMAGE": 100,
        "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,
}
for _key, _value in OUR_DEFAULTS.items():
    *_path, _last = _key.split(".")
    _node = _DEFAULTS
    for _part in _path:
        _node = _node[_part]
    _node[_last] = _value

# Keys of the same files that have one value for every torchvision detector.
_FIXED: dict[str, Any] = {
    "VERSION": 2,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
}
_STAGES = ["res2", "res3", "res4", "res5"]
_FOUR, _FIVE = ["p2", "p3", "p4", "p5"], ["p2", "p3", "p4", "p5", "p6"]
_STANDARD_HEADS: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.RPN.IN_FEATURES": _FIVE,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": _FOUR,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
}
# The backbone's builder in detectron2 -> what else the configuration of its detector must say.
_DETECTORS: dict[str, dict[str, Any]] = {
    "build_resnet_backbone": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.RPN.IN_FEATURES": ["res4"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    },
    "build_resnet_fpn_backbone": {
        "MODEL.RESNETS.OUT_FEATURES": _STAGES,
        "MODEL.FPN.IN_FEATURES": _STAGES,
        **_STANDARD_HEADS,
    },
    "build_retinanet_resnet_fpn_backbone": {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.MASK_ON": False,
        "MODEL.RESNETS.OUT_FEATURES": _STAGES[1:],
        "MODEL.FPN.IN_FEATURES": _STAGES[1:],
        "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    },
    "build_vit_pyramid_backbone": _STANDARD_HEADS,
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run with torchvision.

    Later ones win: the file's `_BASE_`, the file, the fragment beside MODEL.WEIGHTS, `overrides`.

    Args:
        path: a YAML file.
        overrides: KEY, value, KEY, value; keys with dots.

    Returns:
        Nested dictionaries with every key that the trainer honours.

    Raises:
        ValueError: if a file is no such configuration, or a key is unknown, of another type, or
            asks for a detector that torchvision lacks.
        OSError: if a file cannot be read.
    """
    pairs = read_overrides(overrides)
    config = copy.deepcopy(_DEFAULTS)
    values = [*read_values(path), *pairs]
    _merge(config, values)
    if fragment := fragment_beside(config["MODEL"]["WEIGHTS"]):
        values = [*values, *read_values(fragment), *pairs]
        _merge(config, values)
    # A base is free to describe another detector as long as what builds on it does not.
    last = dict(values)
    for key, wanted in _FIXED.items():
        _require(key, wanted, last.get(key, wanted))
    _check_detector(config)
    if config["INPUT"]["RANDOM_FLIP"] not in {"horizontal", "none"}:
        raise ValueError(
            f"config: INPUT.RANDOM_FLIP must be horizontal or none for the torchvision trainer, "
            f"got {config['INPUT']['RANDOM_FLIP']!r}"
        )
    return config


def dump_config(config: Config) -> str:
    """The configuration as YAML, complete enough to be given as --config-file again."""
    return str(yaml.safe_dump(config, sort_keys=True))


def detector_of(config: Config) -> str:
    """`C4`, `FPN`, `RetinaNet` or `ViT`."""
    return DETECTOR_OF[config["MODEL"]["BACKBONE"]["NAME"]]


def configure(arguments: argparse.Namespace) -> Config:
    """The configuration that the command line asks for.

    Raises:
        ValueError: as `load_config` does, or if the settings cannot be run here.
        OSError: if a file cannot be read.
    """
    if arguments.num_gpus not in {0, 1}:
        raise ValueError(
            f"--num-gpus: must be 0 or 1 with torchvision, got {arguments.num_gpus}; "
            f"detection.train_net trains on several"
        )
    config = load_config(arguments.config_file, arguments.opts)
    apply_arguments(config, arguments)
    return config


def _check_detector(config: Config) -> None:
    name = config["MODEL"]["BACKBONE"]["NAME"]
    if name not in _DETECTORS:
        _require("MODEL.BACKBONE.NAME", " or ".join(_DETECTORS), name)
    for key, wanted in _DETECTORS[name].items():
        value: Any = config
        for part in key.split("."):
            value = value[part]
        _require(key, wanted, value)


def _require(key: str, wanted: Any, value: Any) -> None:
    if value != wanted:
        raise ValueError(
            f"config: {key} must be {wanted!r} for torchvision's detector, got {value!r}; that "
            f"detector is what detection.train_net is for"
        )


def _merge(config: Config, values: Sequence[tuple[str, Any]]) -> None:
    for key, value in values:
        if key in _FIXED:
            continue
        *path, last = key.split(".")
        node: Any = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node or isinstance(node[last], dict):
            raise ValueError(f"config: the torchvision trainer does not know the key {key}")
        node[last] = _checked(key, value, node[last])


def _checked(key: str, value: Any, old: Any) -> Any:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise ValueError(f"config: {key} must be {type(old).__name__}, got {value!r}")
    return value
