"""The images of a run for its trained backbone, and the `probe` command."""

import json
import os
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from lightly_collapse._arguments import (
    Checkpoint,
    Count,
    Device,
    ImageSize,
    InputFile,
    Natural,
    OutputFolder,
    validated,
)
from lightly_collapse.io.devices import find_device
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.images import Preparation
from lightly_collapse.io.models import load_model
from lightly_collapse.io.preparation import published_preparation
from lightly_collapse.pretrain.command import explain
from lightly_collapse.pretrain.configs import load_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.report import CollapseReport, measure
from lightly_collapse.report.measure import Classifier

_HELD_OUT = ("val", "test", "validation")
_CIFAR_SIZE = 32


@validated
def probe(
    checkpoint: Checkpoint,
    data: str | None = None,
    config: InputFile | None = None,
    protocol: Sequence[Classifier] = ("knn", "linear"),
    arch: str | None = None,
    prefix: str | None = None,
    image_size: ImageSize | None = None,
    batch_size: Count | None = None,
    workers: Natural = 0,
    device: Device = "auto",
    output: OutputFolder | None = None,
) -> CollapseReport:
    """Train kNN and linear classifiers on the frozen features of a checkpoint.

    Prints their accuracies on held-out images; with an output folder writes `probe.json`.

    Args:
        checkpoint: the weights, in any common format.
        data: `digits`, or a folder that holds train and val (or test), each with one folder of
            images a class; by default the images of config.yaml beside the checkpoint.
        config: a configuration of pretrain, whose images are taken instead.
        protocol: the classifiers, knn and linear; both by default.
        arch: a model of torchvision or timm; not needed where the checkpoint says what it is.
        prefix: of the network's names in the checkpoint, such as teacher.
        image_size: height and width in pixels; by default the model's, in the pretraining or as
            published.
        batch_size: images a batch; that of the pretraining by default, or 256.
        workers: processes that read images.
        device: auto, cpu, cuda, cuda:N or mps.
        output: folder to write to; made if missing.

    Returns:
        The report on the held-out images, with the accuracies.

    Raises:
        ValueError: if an argument, the checkpoint or the data is at fault.
        OSError: if something cannot be read or written.
    """
    if data is not None and config is not None:
        raise ValueError("give --data or --config, not both")
    if data is not None and data != "digits" and not Path(data).is_dir():
        raise ValueError(f"data must be `digits` or a folder that holds train and val, got {data}")
    beside = Path(checkpoint).parent / "config.yaml"
    if data is None and config is None and not beside.is_file():
        raise ValueError(f"--data or --config must say what to probe on: {beside} does not exist")
    target = find_device(device)
    loaded = load_model(arch, checkpoint, prefix=prefix)
    settings = _data_settings(config or beside) if config or beside.is_file() else None
    if settings is None and data is None:
        raise ValueError(f"config {config or beside} must have `data`, as a run's config.yaml has")
    known = loaded.pretrained is not None and settings is not None
    how = _preparation(_data_module(settings)) if known and settings else None
    how = how or published_preparation(loaded, small=data == "digits")
    if data is not None:
        settings = _settings_of(data, settings if known else None)
    images = _data_module(settings or {}, batch_size=batch_size, num_workers=workers)
    images.image_size = image_size or how.image_size
    images.normalization = how.normalization
    if images.num_classes < 2:
        raise ValueError(f"data must have labels to probe on, {type(images).__name__} has none")
    name = loaded.pretrained.method if loaded.pretrained else loaded.arch
    report = measure_on(loaded.model, images, target, name=name, classifiers=protocol)
    report = replace(report, notes=loaded.notes)
    if output is not None:
        record = {"method": name, **report.accuracy, "settings": report.settings}
        text = json.dumps(record, indent=1)
        atomic_write(check_writable_folder(output) / "probe.json", text.encode())
    Console().print(_table(report))
    return report


def pretraining_images(checkpoint: str | os.PathLike[str]) -> Preparation | None:
    """How the images of a run were prepared, and its held-out images.

    Args:
        checkpoint: of the run.

    Returns:
        Size, normalisation and images by `config.yaml` beside the checkpoint; None where there is
        no such file, or it is not of a run.
    """
    path = Path(checkpoint).parent / "config.yaml"
    if not path.is_file():
        return None
    try:
        settings = _data_settings(path)
        return None if settings is None else _preparation(_data_module(settings))
    except ValueError:
        return None


def measure_on(
    backbone: torch.nn.Module, data: PretrainData, device: torch.device, **settings: Any
) -> CollapseReport:
    """Measure a backbone on the held-out images of a data module, with the accuracies.

    Args:
        backbone: from images to (n, d).
        data: not yet set up.
        device: where to compute.
        settings: of `measure`; no inner layers are measured by default.

    Returns:
        The report.

    Raises:
        ValueError: if the data are at fault.
        OSError: if they cannot be read.
    """
    data.prepare_data()
    data.setup("validate")
    train, held_out = data.evaluation_batches()
    labelled = data.num_classes > 1
    return measure(
        backbone,
        held_out,
        train_dataloader=train if labelled else None,
        device=device,
        **{"layers": [], **settings},
    )


def _preparation(data: PretrainData) -> Preparation:
    def held_out() -> Any:
        data.prepare_data()
        data.setup("validate")
        return data.evaluation_batches()[1]

    size = getattr(data, "image_size", _CIFAR_SIZE)
    return Preparation(size, data.normalization, "the size of the pretraining", held_out)


def _data_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    settings = load_config(Path(path)).get("data")
    return settings if isinstance(settings, dict) else None


def _data_module(settings: Mapping[str, Any], **changes: Any) -> PretrainData:
    """The data module that a configuration names, with some arguments changed unless None."""
    arguments = {**(settings.get("init_args") or {})}
    arguments |= {name: value for name, value in changes.items() if value is not None}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PretrainData, "data", required=True)
    try:
        parsed = parser.parse_object({"data": {**settings, "init_args": arguments}})
        data: PretrainData = parser.instantiate_classes(parsed).data
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    return data


def _settings_of(data: str, pretraining: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data module for `digits` or a folder, that of the pretraining where it reads folders."""
    if data == "digits":
        return {"class_path": "Digits"}
    held_out = next((part for part in _HELD_OUT if (Path(data) / part).is_dir()), "val")
    arguments = {"root": data, "train": "train", "val": held_out}
    kind = str((pretraining or {}).get("class_path", "")).rpartition(".")[2]
    return {
        "class_path": kind if kind == "SmallImageFolder" else "ImageFolder",
        "init_args": arguments,
    }


def _table(report: CollapseReport) -> Table:
    settings = report.settings
    table = Table(
        title=f"{report.name}: classifiers on {report.output.dimensions} frozen features",
        box=box.SIMPLE_HEAD,
        caption=f"of {report.output.scalars['rows']:.0f} held-out images"
        + (
            f"; kNN with k {settings['knn_k']} and temperature {settings['knn_temperature']}"
            if "knn" in report.accuracy
            else ""
        ),
    )
    for name in report.accuracy:
        table.add_column({"knn": "kNN %", "linear": "linear %"}[name], justify="right")
    table.add_row(*(f"{100 * value:.1f}" for value in report.accuracy.values()))
    return table
