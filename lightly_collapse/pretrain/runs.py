"""A run of `pretrain` as its output folder holds it."""

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.pretrain.command import DIVERGED, explain
from lightly_collapse.pretrain.configs import load_config
from lightly_collapse.pretrain.methods.base import Method
from lightly_collapse.pretrain.renamed import check_renamed

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class RunFiles:
    """What there is of a run.

    Attributes:
        checkpoint: its last one.
        config: its `config.yaml`; None where there is none.
        readings: its `collapse.csv`; None where there is none.
        diverged: why it ended, where its loss was no longer finite; else empty.
    """

    checkpoint: Path
    config: dict[str, Any] | None
    readings: Path | None
    diverged: str = ""


def find_run(path: _Path) -> RunFiles:
    """The files of a run.

    Args:
        path: the output folder of `pretrain`, or a checkpoint, beside which the others are sought.

    Raises:
        ValueError: if a folder holds no checkpoint, or `config.yaml` is none of `pretrain`.
        OSError: if there is nothing.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"run {place} does not exist")
    checkpoint = place
    if place.is_dir():
        found = sorted(
            place.glob("*.ckpt"), key=lambda p: (p.name == "last.ckpt", p.stat().st_mtime)
        )
        if not found:
            ended = _diverged(place)
            raise ValueError(
                f"run {place} holds no checkpoint (last.ckpt or another *.ckpt)"
                + (f"; it ended in its first epoch: {ended}" if ended else "")
            )
        checkpoint = found[-1]
    folder = checkpoint.parent
    config = None
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml")
        try:
            check_renamed(config)
        except ValueError as error:
            raise ValueError(f"config {folder / 'config.yaml'}: {error}") from error
        if not all(isinstance(config.get(part), dict) for part in ("model", "data")):
            raise ValueError(
                f"config {folder / 'config.yaml'} must have `model` and `data`, as pretrain writes"
            )
    tables = [folder / "collapse.csv", *sorted(folder.glob("*/collapse.csv"))]
    readings = next((table for table in tables if table.is_file()), None)
    return RunFiles(checkpoint, config, readings, _diverged(folder))


def _diverged(folder: Path) -> str:
    file = folder / DIVERGED
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def read_readings(path: _Path) -> list[dict[str, float]]:
    """The rows of `collapse.csv`; values that are not numbers are nan.

    Raises:
        ValueError: if the file is not whole: no header, no row, a row of another length, or a last
            line without its end.
        OSError: if it cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if len(rows) < 2:
        raise ValueError(f"readings {path} must have a header and a row, got {len(rows)} lines")
    head = rows[0]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(head):
            raise ValueError(
                f"readings {path} are not finished: line {number} has {len(row)} of {len(head)} "
                "columns"
            )
    if not text.endswith("\n"):  # a number may have been cut
        raise ValueError(f"readings {path} are not finished: line {len(rows)} has no end")
    return [
        {name: _number(text) for name, text in zip(head, row, strict=True) if text}
        for row in rows[1:]
    ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def build_method(settings: Mapping[str, Any]) -> Method:
    """The method that `model` of a configuration names, with random weights and no probe.

    Raises:
        ValueError: if the settings are at fault.
    """
    arguments = {**(settings.get("init_args") or {}), "num_classes": 0}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model", required=True)
    try:
        parsed = parser.parse_object({"model": {**settings, "init_args": arguments}})
        method: Method = parser.instantiate_classes(parsed).model
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    return method


def load_weights(method: Method, checkpoint: _Path) -> list[str]:
    """Load what a checkpoint has of a method: all tensors of the same name and shape.

    Args:
        method: of the same backbone.
        checkpoint: of `pretrain`; momentum encoders may be missing in it.

    Returns:
        The method's trained tensors that the checkpoint lacks.

    Raises:
        ValueError: if it is damaged, or holds nothing of the backbone.
    """
    state = read_checkpoint(checkpoint).get("state_dict")
    own = method.state_dict()
    if not isinstance(state, dict) or not any(name.startswith("backbone.") for name in state):
        raise ValueError(f"checkpoint {checkpoint} was not written by lightly-collapse pretrain")
    fitting = {
        name: value.to(own[name].dtype)
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    method.load_state_dict(fitting, strict=False)
    trained = {
        f"{name}.{inner}"
        for name, module in method.named_children()
        if any(module is m for m in method.trainable_modules())
        for inner in module.state_dict()
    }
    return sorted(trained - set(fitting))
