"""Labelled images for a trained backbone: those of its run, or any folder; and the `probe` verb."""

import json
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.pretrain.checkpoint import load_backbone
from lightly_collapse.pretrain.command import DATA, explain
from lightly_collapse.pretrain.configs import load_config, split_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.report import CollapseReport, measure

_HELD_OUT = ("val", "test", "validation")


def probe(arguments: Sequence[str]) -> CollapseReport:
    """Train classifiers on the frozen features of a checkpoint, test them, and print the table.

    The data are those of `config.yaml` beside the checkpoint unless `--config` or `--data` says
    otherwise.

    Args:
        arguments: the words after `lightly-collapse probe`.

    Returns:
        The report on the held-out images, with the accuracies.

    Raises:
        ValueError: if an argument, the checkpoint or the data is at fault.
        OSError: if something cannot be read or written.
    """
    config, words = split_config(arguments)
    parser = ArgumentParser(
        prog="lightly-collapse probe",
        description=probe.__doc__.splitlines()[0] if probe.__doc__ else None,
        exit_on_error=False,
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="last.ckpt of a run")
    parser.add_argument("--output", type=str, help="folder to write probe.json to")
    parser.add_argument("--device", type=str, default="cpu", help="where to compute")
    parser.add_argument("--config", action="config", help="a configuration with `data`")
    parser.add_subclass_arguments(PretrainData, "data", required=False)
    beside = Path(_value_of("--checkpoint", words)).parent / "config.yaml"
    if not config and beside.is_file():
        config = load_config(beside)
    settings, words = _named_data(words)
    settings = settings or config.get("data")
    if settings:
        words = ["--config", yaml.safe_dump({"data": settings}), *words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_args(words)
            data = parser.instantiate_classes(parsed).data
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    backbone, about = load_backbone(parsed.checkpoint)
    if data is None:
        raise ValueError(f"--data or --config must say what to probe on: {beside} does not exist")
    if data.num_classes is not None and data.num_classes < 2:
        raise ValueError(f"--data must have labels to probe on, {type(data).__name__} has none")
    try:
        device = torch.device(parsed.device)
    except RuntimeError as error:
        raise ValueError(f"--device must name a device, got {parsed.device!r}") from error
    folder = check_writable_folder(parsed.output) if parsed.output else None
    report = measure_on(backbone, data, device, name=about["method"])
    if folder is not None:
        record = {**about, **report.accuracy, "settings": report.settings}
        atomic_write(folder / "probe.json", json.dumps(record, indent=1).encode())
    Console().print(_table(report))
    return report


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
    labelled = data.num_classes is not None and data.num_classes > 1
    return measure(
        backbone,
        held_out,
        train_dataloader=train if labelled else None,
        device=device,
        **{"layers": [], **settings},
    )


def _value_of(option: str, words: Sequence[str]) -> str:
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def _named_data(words: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """`--data digits` and `--data FOLDER` as settings of a data module; other words as they are."""
    name = _value_of("--data", words)
    if not name or name in DATA:
        return None, list(words)
    settings: Mapping[str, Any]
    if name == "digits":
        settings = {"class_path": "Digits"}
    elif Path(name).is_dir():
        held_out = next((part for part in _HELD_OUT if (Path(name) / part).is_dir()), "val")
        settings = {"class_path": "ImageFolder", "init_args": {"root": name, "val": held_out}}
    else:
        return None, list(words)
    rest, skip = [], False
    for word in words:
        if skip or word == f"--data={name}":
            skip = False
        elif word == "--data":
            skip = True
        else:
            rest.append(word)
    return dict(settings), rest


def _table(report: CollapseReport) -> Table:
    table = Table(
        title=f"{report.name}: classifiers on {report.output.dimensions} frozen features",
        box=box.SIMPLE_HEAD,
        caption=f"kNN with k {report.settings['knn_k']} and temperature "
        f"{report.settings['knn_temperature']}, of {report.output.scalars['rows']:.0f} images",
    )
    for heading in ("kNN %", "linear %"):
        table.add_column(heading, justify="right")
    table.add_row(*(f"{100 * report.accuracy[name]:.1f}" for name in ("knn", "linear")))
    return table
