"""The `sweep` command: methods x regularizers x seeds, one cell after another, resumable."""

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from lightly_collapse._arguments import (
    Config,
    OutputFolder,
    PositiveFloat,
    Seed,
    validated,
)
from lightly_collapse.io.devices import find_device
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.locks import HeldError, hold_folder
from lightly_collapse.pretrain.checks import check_config
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.configs import merge
from lightly_collapse.pretrain.evaluate import data_module, measure_on
from lightly_collapse.pretrain.methods.base import DivergedError
from lightly_collapse.pretrain.processes import count_processes, pretrain_apart
from lightly_collapse.pretrain.runs import build_method, find_run, load_weights
from lightly_collapse.pretrain.sweep_file import Cell, chosen_cells, read_sweep, settings_of
from lightly_collapse.report.pages.sweep import sweep_figures, sweep_page

COLUMNS = {
    "knn": ("kNN %", 100, ".1f"),
    "linear": ("linear %", 100, ".1f"),
    "rankme": ("RankMe", 1, ".1f"),
    "effective_rank": ("eff. rank", 1, ".1f"),
    "collapsed_dimensions": ("collapsed", 1, ".1f"),
    "mlid": ("mLID", 1, ".2f"),
    "orthogonality_residual": ("orth. residual", 1, ".3f"),
    "embedding_rankme": ("emb. RankMe", 1, ".1f"),
}
"""The table's columns: from a measure to its heading, factor and format."""


@validated
def sweep(
    path: Config,
    output: OutputFolder = "sweep-output",
    overrides: Sequence[str] = (),
    seeds: Sequence[Seed] | None = None,
    only: Sequence[str] | None = None,
    minutes: PositiveFloat | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> list[dict[str, Any]]:
    """Pretrain methods x regularizers x seeds, resumable, and compare them on one page.

    Runs every cell that is not finished. One that was killed is resumed from its last checkpoint. A
    cell whose training diverges is recorded as such, and the sweep continues.

    A training of several devices (`trainer.devices`) gets processes of its own.

    On a Ray cluster several cells run at a time, each on the CPUs and GPUs that the file gives it.
    The output folder must then be one that every node sees.

    Args:
        path: the sweep file, YAML; see `read_sweep`.
        output: folder to write to, with one folder for each cell, `results.json`, `table.md`,
            `report.html` and figures; made if missing.
        overrides: KEY=VALUE settings of every run, such as data.root=/images.
        seeds: instead of the file's.
        only: run these rows of the table alone, such as "BYOL + SO", so that several processes
            can share one output folder; the table still holds every finished cell.
        minutes: start no further cell after so many; the same command resumes the sweep.
        engine: `local`, one cell after another, or `ray`, the workers of a Ray cluster.
        address: of the Ray cluster; by default the running one or a new one on this machine.

    Returns:
        The record of every finished cell.

    Raises:
        ValueError: if the sweep file or a configuration is at fault, a folder holds a cell of
            another configuration, or Ray is wanted and not installed.
        OSError: if something cannot be read or written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "sweep starts the processes of every training itself: run it in one process, got "
            f"WORLD_SIZE {os.environ['WORLD_SIZE']}"
        )
    settings = settings_of(overrides)
    cells = read_sweep(path, seeds)
    wanted = chosen_cells(cells, only)
    for cell in wanted:
        check_config(merge(cell.config, settings))
    folder = check_writable_folder(output)
    claimed = [
        folder / cell.folder for cell in cells if _claim(folder / cell.folder, cell, overrides)
    ]
    todo = [c for c in wanted if not (folder / c.folder / "result.json").exists()]
    try:
        if engine == "ray":
            from lightly_collapse.pretrain.sweep_ray import run_on_cluster  # noqa: PLC0415

            run_on_cluster(_run, todo, folder, settings, minutes, address)
        else:
            _run_in_turn(todo, cells, folder, settings, minutes)
    except ValueError:
        # Other settings may be tried in the same folder.
        _release(claimed)
        raise
    results = [
        json.loads(file.read_text())
        for cell in cells
        if (file := folder / cell.folder / "result.json").exists()
    ]
    if results:
        _report(folder, results, len(cells))
    print(f"{len(results)} of {len(cells)} cells are finished; see {folder}")
    return results


def _run_in_turn(
    todo: Sequence[Cell],
    cells: Sequence[Cell],
    folder: Path,
    settings: Mapping[str, Any],
    minutes: float | None,
) -> None:
    began = time.monotonic()
    for cell in todo:
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            break
        print(
            f"[{cells.index(cell) + 1}/{len(cells)}] {cell.variant}, seed {cell.seed}", flush=True
        )
        _run(cell, folder / cell.folder, settings)


def _claim(folder: Path, cell: Cell, overrides: Sequence[str]) -> bool:
    """Write down what a cell's folder holds, or make sure that it holds this; whether written."""
    # Where the images lie decides nothing about the result.
    settings = sorted(o for o in overrides if not o.startswith("data.root="))
    text = yaml.safe_dump({"config": cell.config, "overrides": settings}, sort_keys=True)
    claim = folder / "cell.yaml"
    if claim.exists():
        if claim.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{folder} holds a cell of another configuration: give another --output, or "
                "remove it"
            )
        return False
    check_writable_folder(folder)
    atomic_write(claim, text.encode())
    return True


def _release(folders: Sequence[Path]) -> None:
    """Take back what was written of cells of which nothing was trained."""
    for folder in folders:
        if [path.name for path in folder.iterdir()] == ["cell.yaml"]:
            (folder / "cell.yaml").unlink()
            folder.rmdir()


def _run(cell: Cell, folder: Path, overrides: Mapping[str, Any]) -> None:
    """Run a cell, unless another sweep runs or ran it."""
    try:
        with hold_folder(folder):
            if not (folder / "result.json").exists():
                _run_held(cell, folder, overrides)
    except HeldError as error:
        print(f"{cell.variant}, seed {cell.seed}, is left out: {error}", flush=True)


def _run_held(cell: Cell, folder: Path, overrides: Mapping[str, Any]) -> None:
    resumed = (folder / "last.ckpt").exists()
    config = merge(merge(cell.config, overrides), {"output": str(folder)})
    if resumed:
        config["ckpt_path"] = "last"
    record: dict[str, Any] = {
        "method": cell.method,
        "regularizer": cell.regularizer,
        "variant": cell.variant,
        "seed": cell.seed,
        "resumed": resumed,
    }
    started, processor = time.perf_counter(), sum(os.times()[:4])
    try:
        trained = _train(config)
    except DivergedError as error:
        record["failed"] = str(error)
    else:
        record["seconds"] = round(time.perf_counter() - started, 1)
        record["processor_seconds"] = round(sum(os.times()[:4]) - processor, 1)
        record |= _measured(*trained)
    atomic_write(folder / "result.json", json.dumps(record).encode())


def _train(config: Mapping[str, Any]) -> tuple[Any, Any, torch.device, int | None]:
    """The trained method, its data, the device to measure on and the number of epochs."""
    if count_processes(config.get("trainer", {})) == 1:
        trainer = pretrain(config)
        data = trainer.datamodule  # type: ignore[attr-defined]
        return trainer.lightning_module, data, trainer.strategy.root_device, trainer.max_epochs
    pretrain_apart(config)
    run = find_run(config["output"])
    if run.config is None:
        raise ValueError(f"{config['output']} lacks the config.yaml of its training")
    method = build_method(run.config["model"])
    load_weights(method, run.checkpoint)
    data = data_module(run.config["data"])
    data.seed = run.config["seed_everything"]
    trainer_settings = run.config["trainer"]
    name = "cpu" if trainer_settings["accelerator"] == "cpu" else "auto"
    return method, data, find_device(name), trainer_settings["max_epochs"]


def _measured(method: Any, data: Any, device: torch.device, epochs: int | None) -> dict[str, Any]:
    """The measures of the trained backbone on held-out images, by the names of `COLUMNS`."""
    method.eval().to(device)
    report = measure_on(method.backbone, data, device, head=method.embed)
    out, embedding = report.output, report.layer("embedding")
    names = ("rankme", "effective_rank", "collapsed_dimensions", "mlid")
    return {
        "knn": report.accuracy.get("knn"),
        "linear": report.accuracy.get("linear"),
        **{name: out.scalars[name] for name in names},
        "width": out.dimensions,
        "orthogonality_residual": report.orthogonality_residual,
        "embedding_rankme": embedding.scalars["rankme"],
        "embedding_width": embedding.dimensions,
        "spectrum": out.spectrum,
        "embedding_spectrum": embedding.spectrum,
        "weight_eigenvalues": {w.name: w.normalized_eigenvalues for w in report.weights},
        "collapse_rtol": report.settings["collapse_rtol"],
        "lid_k": out.scalars["lid_k"],
        "epochs": epochs,
        "jitter": data.views.jitter,
        "train_images": data.train_count,
    }


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of every variant.

    Args:
        results: records of finished cells.

    Returns:
        One record a variant, in order of appearance: `variant`, `seeds`, `failed`, and from every
        measure of `COLUMNS` to its mean and sample standard deviation, None from fewer than two.

    Examples:
        >>> rows = [{"variant": "a", "seed": s, "rankme": 1.0 + s} for s in (0, 1)]
        >>> summarize(rows)[0]["rankme"]
        (1.5, 0.7071067811865476)
    """
    rows = []
    for variant in dict.fromkeys(r["variant"] for r in results):
        own = [r for r in results if r["variant"] == variant]
        row: dict[str, Any] = {
            "variant": variant,
            "seeds": len([r for r in own if "failed" not in r]),
            "failed": len([r for r in own if "failed" in r]),
        }
        for name in COLUMNS:
            values = [r[name] for r in own if r.get(name) is not None]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[name] = (statistics.fmean(values), spread) if values else None
        rows.append(row)
    return rows


def _cell_text(value: tuple[float, float | None] | None, name: str) -> str:
    if value is None:
        return "-"
    _, factor, form = COLUMNS[name]
    mean, spread = value
    text = f"{factor * mean:{form}}"
    return text if spread is None else f"{text} ± {factor * spread:{form}}"


def _report(folder: Path, results: Sequence[Mapping[str, Any]], cells: int) -> None:
    rows = summarize(results)
    headings = ["method", "seeds", *(heading for heading, _, _ in COLUMNS.values())]
    body = [
        [
            row["variant"],
            f"{row['seeds']}" + (f" ({row['failed']} diverged)" if row["failed"] else ""),
            *(_cell_text(row[name], name) for name in COLUMNS),
        ]
        for row in rows
    ]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *body]
    markdown = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    atomic_write(folder / "results.json", json.dumps(list(results), indent=1).encode())
    atomic_write(folder / "table.md", markdown.encode())
    finished = [r for r in results if "failed" not in r]
    if finished:
        for name, png in sweep_figures(finished).items():
            atomic_write(folder / name, png)
    page = sweep_page(headings, ["", "", *COLUMNS], body, rows, finished, cells)
    atomic_write(folder / "report.html", page.encode())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading.replace(" ", "\n"), justify="right" if i else "left")
    for line in body:
        table.add_row(*(text.replace(" ± ", "\n±") for text in line))
    Console().print(table)
