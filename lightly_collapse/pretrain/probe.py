"""The `probe` command: what the backbone of a checkpoint knows."""

import json
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.pretrain.checkpoint import load_backbone
from lightly_collapse.pretrain.command import explain
from lightly_collapse.pretrain.configs import load_config, split_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.measurement import Measured, measure_backbone


def probe(arguments: Sequence[str]) -> Measured:
    """Measure the backbone of a checkpoint on held-out images, and print the table.

    The data are those of `config.yaml` beside the checkpoint unless `--config` or `--data` says
    otherwise.

    Args:
        arguments: the words after `lightly-collapse probe`.

    Returns:
        The measures.

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
    beside = _checkpoint_word(words).parent / "config.yaml"
    if not config and beside.is_file():
        config = load_config(beside)
    if "data" in config:
        words = ["--config", yaml.safe_dump({"data": config["data"]}), *words]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_args(words)
            data = parser.instantiate_classes(parsed).data
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    backbone, about = load_backbone(parsed.checkpoint)
    if data is None:
        raise ValueError(f"--config or --data must say what to probe on: no {beside} is there")
    try:
        device = torch.device(parsed.device)
    except RuntimeError as error:
        raise ValueError(f"--device must name a device, got {parsed.device!r}") from error
    folder = check_writable_folder(parsed.output) if parsed.output else None
    data.prepare_data()
    data.setup("validate")
    measured = measure_backbone(backbone.to(device), data, device)
    if folder is not None:
        record = {**about, **asdict(measured)}
        atomic_write(folder / "probe.json", json.dumps(record, indent=1).encode())
    Console().print(_table(about["method"], measured))
    return measured


def _checkpoint_word(words: Sequence[str]) -> Path:
    for i, word in enumerate(words):
        if word == "--checkpoint" and i + 1 < len(words):
            return Path(words[i + 1])
        if word.startswith("--checkpoint="):
            return Path(word.partition("=")[2])
    return Path()


def _table(method: str, m: Measured) -> Table:
    table = Table(title=f"{method}, representation of {m.width} dimensions", box=box.SIMPLE_HEAD)
    for heading in ("kNN %", "linear %", "RankMe", "eff. rank", "collapsed", "mLID", "residual"):
        table.add_column(heading, justify="right")
    table.add_row(
        "-" if m.knn is None else f"{100 * m.knn:.1f}",
        "-" if m.linear is None else f"{100 * m.linear:.1f}",
        f"{m.rankme:.1f}",
        f"{m.effective_rank:.1f}",
        str(m.collapsed),
        f"{m.mlid:.2f}",
        f"{m.residual:.3g}",
    )
    return table
