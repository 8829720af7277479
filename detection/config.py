"""Arguments and configuration, the same for both trainers.

The files in configs/detection are detectron2's: nested keys, `_BASE_` for the file they build on,
and a list of `KEY value` pairs on the command line that overrides them. This module reads them
without detectron2, for the torchvision trainer, and knows which keys that trainer honours; a key
that it could not honour is an error, never ignored.
"""

import argparse
import ast
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]

# detectron2's defaults, for every key that the torchvision trainer honours.
_DEFAULTS: Config = {
    "MODEL": {
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "BACKBONE": {"FREEZE_AT": 2},
        "RESNETS": {
            "DEPTH": 50,
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            "RES2_OUT_CHANNELS": 256,
            "NORM": "FrozenBN",
        },
        "FPN": {"OUT_CHANNELS": 256, "NORM": ""},
        "ANCHOR_GENERATOR": {
            "SIZES": [[32], [64], [128], [256], [512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        },
        "RPN": {
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
            "NUM_CLASSES": 80,
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "IOU_THRESHOLDS": [0.5],
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
        },
        "ROI_BOX_HEAD": {"FC_DIM": 1024, "POOLER_RESOLUTION": 14},
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
# Keys of the same files that describe what torchvision's Faster R-CNN always is.
_FIXED: dict[str, Any] = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": False,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "INPUT.FORMAT": "RGB",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that this project adds to detectron2's."""
    parser.add_argument(
        "--dataset-root",
        type=Path,
        metavar="FOLDER",
        help="a folder in VOC format; DATASETS.TRAIN and TEST then name its splits. Without it, "
        "they name VOC sets (voc_2007_test) in $DETECTRON2_DATASETS, by default ./datasets",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="with --dataset-root: the classes (default: those of the annotations)",
    )


def make_parser(description: str) -> argparse.ArgumentParser:
    """detectron2's standard arguments, and ours."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="0 trains on the CPU whatever MODEL.DEVICE says"
    )
    add_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    return parser


def fragment_beside(weights: str) -> Path | None:
    """The configuration that the export wrote beside a weight file, if there is one."""
    path = Path(weights).with_suffix(".yaml") if weights else None
    return path if path is not None and path.is_file() else None


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
            asks for what torchvision's Faster R-CNN is not.
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
        if key in last and last[key] != wanted:
            raise ValueError(
                f"config: {key} must be {wanted!r} for torchvision's Faster R-CNN, got "
                f"{last[key]!r}; that detector is what detection.train_net is for"
            )
    if config["INPUT"]["RANDOM_FLIP"] not in {"horizontal", "none"}:
        raise ValueError(
            f"config: INPUT.RANDOM_FLIP must be horizontal or none for the torchvision trainer, "
            f"got {config['INPUT']['RANDOM_FLIP']!r}"
        )
    return config


def dump_config(config: Config) -> str:
    """The configuration as YAML, complete enough to be given as --config-file again."""
    return str(yaml.safe_dump(config, sort_keys=True))


def read_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """KEY, value, KEY, value as pairs, each value read as detectron2 reads it.

    Raises:
        ValueError: if a value is missing.

    Examples:
        >>> read_overrides(["SOLVER.STEPS", "(1, 2)", "SEED", "3"])
        [('SOLVER.STEPS', [1, 2]), ('SEED', 3)]
    """
    if len(overrides) % 2:
        raise ValueError(f"overrides must come as KEY VALUE pairs, got {' '.join(overrides)!r}")
    return [(k, _decode(v)) for k, v in zip(overrides[::2], overrides[1::2], strict=True)]


def read_values(path: str | Path) -> list[tuple[str, Any]]:
    """All keys of a configuration file and its bases with their values, the base's first.

    Raises:
        ValueError: if a file is no such configuration.
        OSError: if it cannot be read.
    """
    return _read_chain(Path(path), ())


def _read_chain(path: Path, above: tuple[Path, ...]) -> list[tuple[str, Any]]:
    if path.resolve() in above:
        raise ValueError(f"config {path}: is its own _BASE_")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config {path}: must hold keys and values")
    base = content.pop("_BASE_", None)
    values = _read_chain(path.parent / base, (*above, path.resolve())) if base else []
    return [*values, *_flatten(content)]


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _decode(value)


def _decode(value: Any) -> Any:
    """As detectron2 does: text that reads as a literal is one; tuples are lists here."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return [_decode(v) for v in value] if isinstance(value, (list, tuple)) else value


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
