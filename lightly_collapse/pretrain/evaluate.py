"""The images of a run for its trained backbone, and the `probe` command."""

import json
import os
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from typing_extensions import override

from lightly_collapse._arguments import (
    Arch,
    Checkpoint,
    Count,
    Device,
    Epochs,
    ImageSize,
    InputFile,
    OutputFolder,
    PositiveFloat,
    Seed,
    Share,
    Workers,
    validated,
)
from lightly_collapse._combinations import check_probe
from lightly_collapse.io.devices import find_device
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.images import Preparation
from lightly_collapse.io.models import load_model
from lightly_collapse.io.preparation import published_preparation
from lightly_collapse.metrics.features import feature_rows, first_tensor
from lightly_collapse.pretrain.command import explain
from lightly_collapse.pretrain.configs import load_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.linear_probe import labelled_share
from lightly_collapse.pretrain.protocols import Protocol, probe_accuracies
from lightly_collapse.report import CollapseReport, measure
from lightly_collapse.report.feature_pass import representations
from lightly_collapse.report.pages.embedding_picture import embedding_picture
from lightly_collapse.report.pages.figures import to_png

_HELD_OUT = ("val", "test", "validation")
_CIFAR_SIZE = 32


@validated
def probe(
    checkpoint: Checkpoint,
    data: str | None = None,
    config: InputFile | None = None,
    protocol: Sequence[Protocol] = ("knn", "linear"),
    knn_k: Sequence[Count] = (20, 200),
    knn_temperature: PositiveFloat = 0.07,
    labels: Share = 1.0,
    epochs: Epochs | None = None,
    crops: bool = True,
    dimensions: Count | None = None,
    chosen: Literal["first", "random"] = "first",
    arch: Arch | None = None,
    prefix: str | None = None,
    image_size: ImageSize | None = None,
    batch_size: Count | None = None,
    workers: Workers = 0,
    device: Device = "auto",
    seed: Seed = 0,
    picture: bool = False,
    output: OutputFolder | None = None,
) -> CollapseReport:
    """Train kNN and linear classifiers on the frozen features of a checkpoint.

    Prints their accuracies on held-out images; with an output folder writes `probe.json`.

    Args:
        checkpoint: the weights, in any common format.
        data: `digits`, or a folder that holds train and val (or test), each with one folder of
            images a class; by default the images of config.yaml beside the checkpoint.
        config: a configuration of pretrain, whose images are taken instead.
        protocol: the classifiers: knn; linear, logistic regression on standardised features;
            lars and sgd, a linear layer trained as in published linear evaluations; knn and
            linear by default.
        knn_k: numbers of neighbours that vote.
        knn_temperature: t in a vote's weight exp(similarity / t).
        labels: share of the training images of each class that have labels, such as 0.01 or 0.1.
        epochs: of lars and sgd; the published 90 and 100 by default.
        crops: train lars and sgd on random crops and flips, drawn anew every epoch, as published;
            with --no-crops on the images as they are, whose features are computed once.
        dimensions: probe so many entries of the representation only; all by default.
        chosen: which ones: the first, those that DirectCLR's loss acts on, or random ones.
        arch: a model of torchvision or timm; not needed where the checkpoint says what it is.
        prefix: of the network's names in the checkpoint, such as teacher.
        image_size: height and width in pixels; by default the model's, in the pretraining or as
            published.
        batch_size: images a batch; that of the pretraining by default, or 256. lars and sgd take
            the published one.
        workers: processes that read images.
        device: auto, cpu, cuda, cuda:N or mps.
        seed: of the labelled images, the random entries, crops, order and first weights.
        picture: draw the held-out representations by t-SNE, into picture.png in the output folder.
        output: folder to write to; made if missing.

    Returns:
        The report on the held-out images, with the accuracies: `knn_20` for 20 neighbours,
        `linear`, `lars` and `sgd`, and with `_top5` the share of images whose class is among the
        five most likely, where there are more than five.

    Raises:
        ValueError: if an argument, the checkpoint or the data is at fault.
        OSError: if something cannot be read or written.
    """
    check_probe(
        checkpoint, data, config, workers, protocol, dimensions,
        epochs=epochs, picture=picture, output=output,
    )  # fmt: skip
    beside = Path(checkpoint).parent / "config.yaml"
    target = find_device(device)
    loaded = load_model(arch, checkpoint, prefix=prefix)
    settings = _data_settings(config or beside) if config or beside.is_file() else None
    if settings is None and data is None:
        raise ValueError(f"config {config or beside} must have `data`, as a run's config.yaml has")
    known = loaded.pretrained is not None and settings is not None
    how = _preparation(data_module(settings)) if known and settings else None
    how = how or published_preparation(loaded, small=data == "digits")
    if data is not None:
        settings = _settings_of(data, settings if known else None)
    images = data_module(settings or {}, batch_size=batch_size, num_workers=workers)
    images.image_size = image_size or how.image_size
    images.normalization = how.normalization
    if images.num_classes < 2:
        raise ValueError(f"data must have labels to probe on, {type(images).__name__} has none")
    images.prepare_data()
    images.setup("validate")
    name = loaded.pretrained.method if loaded.pretrained else loaded.arch
    model = _subvector(loaded.model, dimensions, chosen, seed)
    report = measure(
        model, images.evaluation_batches()[1], layers=[], device=target, name=name, seed=seed
    )
    kept = labelled_share(images.train_labels(), labels, seed)
    accuracy = probe_accuracies(
        model,
        images,
        protocol,
        kept,
        knn_k=knn_k,
        knn_temperature=knn_temperature,
        epochs=epochs,
        crops=crops,
        device=target,
        seed=seed,
    )
    how_probed: dict[str, float | str] = {"labels": labels, "labelled_images": len(kept)}
    if "knn" in protocol:
        how_probed["knn_temperature"] = knn_temperature
    if dimensions is not None:
        how_probed["dimensions"] = f"{chosen} {dimensions}"
    report = replace(
        report,
        notes=loaded.notes,
        accuracy=accuracy,
        settings=report.settings | how_probed,
    )
    if output is not None:
        record = {"method": name, **report.accuracy, "settings": report.settings}
        text = json.dumps(record, indent=1)
        folder = check_writable_folder(output)
        atomic_write(folder / "probe.json", text.encode())
        if picture:
            held_out = representations(model, images.evaluation_batches()[1], target)
            drawn = to_png(embedding_picture(*held_out, seed=seed))
            atomic_write(folder / "picture.png", drawn)
    Console().print(_table(report))
    return report


class _Subvector(torch.nn.Module):
    """A backbone of which some entries of the representation are taken."""

    entries: Tensor

    def __init__(self, backbone: torch.nn.Module, entries: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("entries", entries)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return feature_rows(first_tensor(self.backbone(images)))[:, self.entries]


def _subvector(
    model: torch.nn.Module, dimensions: int | None, chosen: str, seed: int
) -> torch.nn.Module:
    if dimensions is None:
        return model
    width = getattr(model, "feature_dim", None)
    if not isinstance(width, int):
        raise ValueError("dimensions can be chosen of a backbone that says its feature_dim only")
    if dimensions > width:
        raise ValueError(
            f"dimensions must be at most the representation's {width}, got {dimensions}"
        )
    entries = torch.arange(dimensions)
    if chosen == "random":
        entries = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:dimensions]
    return _Subvector(model, entries)


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
        return None if settings is None else _preparation(data_module(settings))
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
    return Preparation(
        size,
        data.normalization,
        "the size of the pretraining",
        held_out,
        data.held_out_name,
    )


def _data_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    settings = load_config(Path(path)).get("data")
    return settings if isinstance(settings, dict) else None


def data_module(settings: Mapping[str, Any], **changes: Any) -> PretrainData:
    """The data module that a configuration names, with some arguments changed unless None.

    Raises:
        ValueError: if the settings are at fault.
    """
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
        caption=f"of {report.output.scalars['rows']:.0f} held-out images, from the labels of "
        f"{settings['labelled_images']} training images",
    )
    for name in report.accuracy:
        table.add_column(_heading(name), justify="right")
    table.add_row(*(f"{100 * value:.1f}" for value in report.accuracy.values()))
    return table


def _heading(name: str) -> str:
    kind, _, rest = name.partition("_")
    words = {"knn": "kNN", "lars": "linear, LARS", "sgd": "linear, SGD"}.get(kind, kind)
    detail = {"": "", "top5": ", top 5"}.get(rest, f", k {rest}")
    return f"{words}{detail} %"
