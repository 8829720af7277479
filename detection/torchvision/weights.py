"""Exported weights put into a torchvision detector, every tensor accounted for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detection.results import RunRecord
from detection.torchvision.config import Config, detector_of
from lightly_collapse.export import read_detectron2, torchvision_state_dict

# Names that only a whole detector has.
_DETECTOR_PARTS = ("rpn.", "head.", "roi_heads.box_predictor.")
_VIT = "backbone.net."


def load_weights(config: Config, detector: nn.Module, record: RunRecord, partial: bool) -> None:
    """Load MODEL.WEIGHTS: an exported backbone, or a detector that a run of this trainer wrote.

    Args:
        config: of the run.
        detector: takes the weights, in place.
        record: of the run, which keeps how many tensors were loaded.
        partial: accept a file that lacks some of the backbone's tensors, or has others.

    Raises:
        ValueError: if the file is corrupt or does not fit the configured network.
        OSError: if it cannot be read.
    """
    path = config["MODEL"]["WEIGHTS"]
    if not path:
        return
    arrays = read_detectron2(path)
    if any(name.startswith(_DETECTOR_PARTS) for name in arrays):
        _load_detector(detector, arrays, path)
        return
    places = _places(config, detector)
    given = _canonical(config, arrays, path, partial)
    own = detector.state_dict()
    fitting = {
        place: given[name]
        for name, place in places.items()
        if name in given and given[name].shape == own[place].shape
    }
    unplaced = [name for name in given if name not in places]
    if unplaced and not partial:
        raise ValueError(
            f"weights {path}: {len(unplaced)} tensors have no place in the configured network "
            f"({', '.join(unplaced[:2])}): another depth than configured?"
        )
    record.check_loaded(path, len(fitting), len(places), partial)
    detector.load_state_dict(fitting, strict=False)


def _places(config: Config, detector: nn.Module) -> dict[str, str]:
    """The exported name of every tensor of the backbone -> its name in the detector."""
    names = [name for name in detector.state_dict() if not name.endswith("num_batches_tracked")]
    if detector_of(config) == "ViT":
        return {name: name for name in names if name.startswith(_VIT)}
    prefixes = ("backbone.body.", "roi_heads.box_head.layer4.")
    return {
        name.removeprefix("backbone.body.").removeprefix("roi_heads.box_head."): name
        for name in names
        if name.startswith(prefixes)
    }


def _canonical(
    config: Config, arrays: Mapping[str, Any], path: str, partial: bool
) -> dict[str, Tensor]:
    if detector_of(config) == "ViT":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    if not partial:
        try:
            return torchvision_state_dict(arrays)
        except ValueError as error:
            raise ValueError(
                f"weights {path}: {error}; `lightly-collapse export` writes files with the right "
                f"names"
            ) from error
    given: dict[str, Tensor] = {}
    for name, array in arrays.items():
        try:
            given |= torchvision_state_dict({name: array})
        except ValueError:
            print(f"warning: {path}: {name} has no place in a ResNet", flush=True)
    return given


def _load_detector(detector: nn.Module, arrays: Mapping[str, Any], path: str) -> None:
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise ValueError(f"weights {path}: do not fit the configured detector: {line}") from error
