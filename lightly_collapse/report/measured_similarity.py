"""The layer similarity of two models that reports name: both loaded again, on the same images."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightly_collapse.io.devices import find_device
from lightly_collapse.io.image_batches import image_batches
from lightly_collapse.io.images import Normalization
from lightly_collapse.io.models import LoadedModel, load_model
from lightly_collapse.metrics.feature_hooks import CLS, PATCH
from lightly_collapse.report.feature_pass import OUTPUT
from lightly_collapse.report.layer_similarity import layer_similarity
from lightly_collapse.report.records import ModelRecord
from lightly_collapse.report.similarity_record import LayerSimilarity

_BATCH_SIZE = 64


def measured_similarity(a: ModelRecord, b: ModelRecord) -> LayerSimilarity:
    """The map of the measured layers of two models on the images they were measured on.

    Args:
        a: what `lightly-collapse measure` wrote of a model on images.
        b: of another, on the same images.

    Returns:
        The map. Each model sees the images prepared as for its report.

    Raises:
        ValueError: if a report is of embeddings or does not say what was measured, the images are
            not the same, or they or a checkpoint are gone.
        OSError: if a file cannot be read.
    """
    for report in (a, b):
        _check_source(report)
    images = [_images(report) for report in (a, b)]
    if images[0] != images[1]:
        raise ValueError(
            f"reports must be of the same images for cka, got {_words(a)} and {_words(b)}"
        )
    loaded = [_load(report) for report in (a, b)]
    same = _preparation(a) == _preparation(b)
    return layer_similarity(
        loaded[0].model,
        loaded[1].model,
        _batches(a),
        None if same else _batches(b),
        layers_a=_layers(a, loaded[0]),
        layers_b=_layers(b, loaded[1]),
        device=find_device("auto"),
        names=(a.name, b.name),
    )


def _check_source(report: ModelRecord) -> None:
    """Raise unless the report says what was measured and all of it is there."""
    known = {"model", "checkpoint", "data"} <= report.source.keys()
    if not known or not {"image_size", "mean", "std", "seed"} <= report.settings.keys():
        raise ValueError(
            "reports must be of models on images, written by `lightly-collapse measure`, for cka; "
            f"{report.name} is of embeddings or does not say what was measured"
        )
    data, checkpoint = str(report.source["data"]), str(report.source["checkpoint"])
    if data != "digits" and not Path(data).is_dir():
        raise ValueError(
            f"reports must be of `digits` or of a folder that is still there for cka, got {data} "
            f"of {report.name}; measure it with --data"
        )
    if checkpoint != "none" and not Path(checkpoint).exists():
        raise ValueError(
            f"reports must be of checkpoints that are files for cka, got {checkpoint} of "
            f"{report.name}, which does not exist here"
        )


def _images(report: ModelRecord) -> tuple[Any, ...]:
    """What decides which images a report is of."""
    data, limit = report.source["data"], report.settings.get("limit")
    if data == "digits":
        return data, limit
    return os.path.realpath(data), limit, None if limit is None else report.settings["seed"]


def _words(report: ModelRecord) -> str:
    limit = report.settings.get("limit")
    most = "" if limit is None else f" (limit {limit}, seed {report.settings['seed']})"
    return f"{report.source['data']}{most}"


def _load(report: ModelRecord) -> LoadedModel:
    source: Mapping[str, Any] = report.source
    torch.manual_seed(report.settings["seed"])  # of random weights, as when it was measured
    checkpoint = None if source["checkpoint"] == "none" else source["checkpoint"]
    return load_model(source["model"], checkpoint, prefix=source.get("prefix"))


def _preparation(report: ModelRecord) -> tuple[int, Normalization]:
    settings = report.settings
    return settings["image_size"], Normalization(tuple(settings["mean"]), tuple(settings["std"]))


def _batches(report: ModelRecord) -> Any:
    size, normalization = _preparation(report)
    return image_batches(
        report.source["data"],
        size,
        _BATCH_SIZE,
        normalization,
        limit=report.settings.get("limit"),
        seed=report.settings["seed"],
    )


def _layers(report: ModelRecord, loaded: LoadedModel) -> list[str]:
    """The measured layers, the output last; class token and patches of a layer are one."""
    own = dict(loaded.model.named_modules())
    names = [_layer(layer.name, own) for layer in [*report.layers[1:], report.output]]
    return list(dict.fromkeys(n for n in names if n == OUTPUT or n in own))


def _layer(name: str, own: Mapping[str, object]) -> str:
    return name if name in own else name.removesuffix(CLS).removesuffix(PATCH)
