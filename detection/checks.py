"""Settings that neither trainer could run with, found before the data is read."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from lightly_collapse._arguments import Workers, check

_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "naiveSyncBN", "naiveSyncBN_N", "LN", "nnSyncBN")
_POSITIVE = (
    "MODEL.FPN.OUT_CHANNELS",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_ITER",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN.NUM_ITER",
)
_CHOICES = {
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "MODEL.BACKBONE.FREEZE_AT": range(6),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
}


def check_gpus(count: int) -> None:
    """Raise a ValueError if there are fewer GPUs than asked for by --num-gpus."""
    if not 0 <= count <= torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus: {count} asked for, {torch.cuda.device_count()} found on this machine"
        )


def check_settings(config: Any, num_gpus: int) -> None:
    """What neither trainer could run with, found before the data is read.

    Args:
        config: nested settings, of either trainer.
        num_gpus: as given on the command line.

    Raises:
        ValueError: naming the key.
    """
    model = config["MODEL"]
    _check_numbers(config)
    _check_solver(config["SOLVER"])
    if not config["SEED"] < 2**32:
        raise ValueError(f"config: SEED must be below 2^32, got {config['SEED']}")
    check("config: DATALOADER.NUM_WORKERS", Workers, config["DATALOADER"]["NUM_WORKERS"])
    if config["TEST"]["EVAL_PERIOD"] < 0:
        period = config["TEST"]["EVAL_PERIOD"]
        raise ValueError(f"config: TEST.EVAL_PERIOD must be 0 or more, got {period}")
    _check_anchors(model)
    _check_pixels(config["INPUT"], model)
    _check_device(model["DEVICE"], num_gpus)
    check_gpus(num_gpus)
    for key in ("RESNETS", "FPN"):
        if model[key]["NORM"] not in _NORMS:
            raise ValueError(
                f"config: MODEL.{key}.NORM must be one of {', '.join(filter(None, _NORMS))} or '', "
                f"got {model[key]['NORM']!r}"
            )


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _check_numbers(config: Any) -> None:
    for key in _POSITIVE:
        value = _value(config, key)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"config: {key} must be at least 1, got {value}")
    for key, choices in _CHOICES.items():
        if (value := _value(config, key)) not in choices:
            known = "0 to 5" if choices == range(6) else ", ".join(map(str, choices))
            raise ValueError(f"config: {key} must be {known}, got {value!r}")


def _check_anchors(model: Any) -> None:
    for key in ("SIZES", "ASPECT_RATIOS"):
        lists = model["ANCHOR_GENERATOR"][key]
        if not lists or not all(isinstance(part, (list, tuple)) and part for part in lists):
            raise ValueError(
                f"config: MODEL.ANCHOR_GENERATOR.{key} must be lists of numbers, a list for each "
                f"level, got {lists}"
            )
    for part, count in (("RPN", 2), ("ROI_HEADS", 1), ("RETINANET", 2)):
        thresholds = model[part]["IOU_THRESHOLDS"]
        if len(thresholds) != count:
            raise ValueError(
                f"config: MODEL.{part}.IOU_THRESHOLDS must be {count} in number, got {thresholds}"
            )


def _check_pixels(sizes: Any, model: Any) -> None:
    for phase in ("TRAIN", "TEST"):
        least = sizes[f"MIN_SIZE_{phase}"]
        values = [*(least if isinstance(least, (list, tuple)) else [least])]
        if not values or min(*values, sizes[f"MAX_SIZE_{phase}"]) < 1:
            raise ValueError(
                f"config: INPUT.MIN_SIZE_{phase} and MAX_SIZE_{phase} must name positive sizes, "
                f"got {least} and {sizes[f'MAX_SIZE_{phase}']}"
            )
    mean, std = model["PIXEL_MEAN"], model["PIXEL_STD"]
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"config: MODEL.PIXEL_MEAN and PIXEL_STD must be three numbers, the deviations "
            f"positive, got {mean} and {std}"
        )


def _check_device(name: str, num_gpus: int) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise ValueError(f"config: MODEL.DEVICE is no device: {line}") from error
    if device.type != "cuda":
        try:
            # Neither the meta device, whose tensors hold nothing, nor one that is not here.
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError) as error:
            raise ValueError(f"config: MODEL.DEVICE {name} cannot be used here") from error
    if device.type == "cuda" and num_gpus and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE: no GPU here; give --num-gpus 0 or MODEL.DEVICE cpu")


def _check_solver(solver: Mapping[str, Any]) -> None:
    for key in ("BASE_LR", "WEIGHT_DECAY", "MOMENTUM", "WARMUP_FACTOR", "GAMMA"):
        if not 0 <= solver[key] < math.inf:
            raise ValueError(
                f"config: SOLVER.{key} must be finite and not negative, got {solver[key]}"
            )
    steps = list(solver["STEPS"])
    if steps != sorted(steps):
        raise ValueError(f"config: SOLVER.STEPS must ascend, got {steps}")
    if not 0 < solver["LAYER_DECAY"] <= 1:
        raise ValueError(f"config: SOLVER.LAYER_DECAY must be in (0, 1]: {solver['LAYER_DECAY']}")
