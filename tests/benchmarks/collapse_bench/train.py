"""One run of the bench: train, measure its checkpoints, write its record."""

import copy
import csv
import json
import logging
import math
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.configs import merge
from lightly_collapse.pretrain.evaluate import measure_on
from lightly_collapse.pretrain.methods.base import DivergedError
from tests.benchmarks.collapse_bench.data import BenchCIFAR10, BenchDigits
from tests.benchmarks.collapse_bench.outcomes import head_of
from tests.benchmarks.collapse_bench.runs import Run

READINGS = 24
"""Readings of the tracker, and votes of kNN, in a run."""
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of a run's steps after which its backbone is measured with a linear probe."""
_KEPT = 0.5
_IMAGES = {"digits": 1257, "cifar10": 1280}
_RECORDER = "tests.benchmarks.collapse_bench.recorder.Recorder"
_MONITOR = "lightly_collapse.callbacks.CollapseMonitor"


def train(run: Run, folder: Path, cifar10: str) -> None:
    """Train and measure a run, unless its folder holds its record.

    Args:
        run: the run.
        folder: of the run; what an interrupted try left in it is removed.
        cifar10: file of the CIFAR-10 images.
    """
    if (folder / "run.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    began, processor = time.perf_counter(), time.process_time()
    config = run.config(cifar10)
    steps = steps_of(run, config)
    every = max(1, steps // READINGS)
    config = merge(config, _surroundings(run, config, folder, steps, every))
    record: dict[str, Any] = {
        "name": run.name,
        "part": run.part,
        "method": run.method,
        "data": run.data,
        "backbone": run.backbone,
        "cause": run.cause,
        "detail": run.detail,
        "seed": run.seed,
        "config": config,
        "steps": steps,
        "every_n_steps": every,
        "diverged": "",
    }
    head: nn.Module | None = None
    try:
        trainer = pretrain(copy.deepcopy(config))  # the parser changes what it is given
        method: Any = trainer.lightning_module
        head = method.eval().embed
    except DivergedError as error:
        record["diverged"] = str(error).partition(" at step")[0]
    record |= json.loads((folder / "recorder.json").read_text())
    record["trained_seconds"] = round(time.process_time() - processor, 1)
    record["checkpoints"] = _measured(run, folder, cifar10, head)
    record["readings"] = _readings(folder / "collapse.csv")
    record["seconds"] = round(time.perf_counter() - began, 1)
    record["processor_seconds"] = round(time.process_time() - processor, 1)
    _slim(folder, steps)
    text = json.dumps(_finite(record), allow_nan=False)
    atomic_write(folder / "run.json", text.encode())


def steps_of(run: Run, config: dict[str, Any]) -> int:
    """Number of optimizer steps; an incomplete last batch of an epoch is dropped."""
    return int(config["trainer"]["max_epochs"]) * (
        _IMAGES[run.data] // config["data"]["init_args"]["batch_size"]
    )


def images_of(run: Run, cifar10: str) -> BenchDigits | BenchCIFAR10:
    """The run's images as they are, with labels, to measure on."""
    return BenchDigits(image_size=16) if run.data == "digits" else BenchCIFAR10(path=cifar10)


def _surroundings(
    run: Run, config: dict[str, Any], folder: Path, steps: int, every: int
) -> dict[str, Any]:
    layers = ["backbone", head_of({"method": run.method})]
    without = config["model"]["init_args"].get("projector") == "none" or run.method == "DirectCLR"
    if without:
        layers.remove("head")
    callbacks = [
        *config["trainer"].get("callbacks", []),
        {
            "class_path": _RECORDER,
            "init_args": {
                "dirpath": str(folder),
                "every_n_steps": every,
                "checkpoints": [round(share * steps) for share in SHARES],
            },
        },
        {
            "class_path": _MONITOR,
            "init_args": {"layers": layers, "every_n_steps": every, "dirpath": str(folder)},
        },
    ]
    return {
        "output": str(folder),
        "trainer": {
            "callbacks": callbacks,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
        },
    }


def _measured(run: Run, folder: Path, cifar10: str, head: Any) -> list[dict[str, Any]]:
    """Measure every checkpoint of the way; the report of the last has all layers."""
    paths = sorted(folder.glob("step*.ckpt"), key=_step)
    found = []
    for path in paths:
        last = path == paths[-1]
        loaded = load_model(None, path)
        entry: dict[str, Any] = {"step": _step(path), "report": f"{path.stem}.json"}
        try:
            report = measure_on(
                loaded.model,
                images_of(run, cifar10),
                torch.device("cpu"),
                name=f"{run.name} at step {_step(path)}",
                layers=None if last else [],
                head=head if last else None,
            )
        except ValueError as error:
            entry |= {"problem": str(error), "report": ""}
            found.append(entry)
            continue
        source = {"model": loaded.arch, "checkpoint": path.name, "data": run.data}
        source["objective"] = loaded.pretrained.method if loaded.pretrained else ""
        report = replace(report, source=source)
        if not last:
            layers = [replace(layer, lid=[]) for layer in report.layers]
            report = replace(report, layers=layers, weights=[])
        report.save(folder / f"{path.stem}.json")
        entry |= {"accuracy": report.accuracy, "scalars": report.output.scalars}
        found.append(entry)
    return found


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step"))


def _readings(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _slim(folder: Path, steps: int) -> None:
    """Keep the last checkpoint without optimizer and momentum encoder, and the one half way."""
    last = folder / "last.ckpt"
    paths = sorted(folder.glob("step*.ckpt"), key=_step)
    if last.exists():
        content = read_checkpoint(last)
        state = {
            name: value
            for name, value in content["state_dict"].items()
            if not name.startswith(("momentum_", "teacher", "probe"))
        }
        slim = {"state_dict": state, "pretrain": content["pretrain"], "epoch": content["epoch"]}
        atomic_write(last, lambda file: torch.save(slim, file))
    for path in paths:
        if _step(path) == round(_KEPT * steps) or (path == paths[-1] and not last.exists()):
            content = read_checkpoint(path)
            half = {n: _half(v) for n, v in content["state_dict"].items()}
            content = {"state_dict": half, "pretrain": content["pretrain"]}
            atomic_write(path, lambda file, content=content: torch.save(content, file))
        else:
            path.unlink()
    (folder / "recorder.json").unlink()


def _half(value: torch.Tensor) -> torch.Tensor:
    """Weights in bfloat16, which has the range of float32; statistics as they are."""
    return value.bfloat16() if value.ndim > 1 else value


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def quiet() -> None:
    """Without Lightning's remarks and without the warnings that broken runs are bound to give."""
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
