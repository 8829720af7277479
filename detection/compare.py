"""Fine-tune several backbones over several seeds, and show how they differ.

    python -m detection.compare --config-file configs/detection/small.yaml \
        --dataset-root bccd_voc --seeds 0 1 --output runs/comparison \
        --backbone random simclr=simclr-{seed}.pkl so=so-{seed}.pkl

A run that is finished is not done again, one that was interrupted goes on from its last checkpoint.
Writes table.md, comparison.json, pictures and index.html into the output folder.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.config import add_arguments, read_overrides, read_values
from detection.datasets import read_datasets
from detection.page import write_page
from detection.pictures import Drawn, draw_pictures
from detection.results import average_precision, read_predictions, write_json
from detection.voc import Dataset
from lightly_collapse.io.files import atomic_write

_TRAINERS = {"torchvision": "detection.train_torchvision", "detectron2": "detection.train_net"}
_SCORES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    Attributes:
        name: of the backbone.
        weights: its file; empty for random initialisation.
        seed: of the fine-tuning, and where the file name says so of pretraining.
        folder: its OUTPUT_DIR.
    """

    name: str
    weights: str
    seed: int
    folder: Path


def plan(backbones: Sequence[str], seeds: Sequence[int], output: Path) -> list[Run]:
    """The runs, seed by seed, so that an early stop leaves whole comparisons.

    Args:
        backbones: `random`, or NAME=FILE; `{seed}` in FILE stands for the seed.
        seeds: at least one.
        output: the folder that gets one folder for each run.

    Raises:
        ValueError: if a name comes twice, is no plain word, or a file does not exist.
    """
    runs = []
    for seed in seeds:
        for text in backbones:
            name, separator, file = text.partition("=")
            if not name.replace("-", "").replace("_", "").replace("+", "").isalnum():
                raise ValueError(f"--backbone: the name must be a plain word, got {name!r}")
            if not separator and name != "random":
                raise ValueError(f"--backbone: must be 'random' or NAME=FILE, got {text!r}")
            weights = file.replace("{seed}", str(seed))
            if weights and not Path(weights).is_file():
                raise ValueError(f"--backbone {name}: no file {weights}")
            runs.append(Run(name, weights, seed, output / f"{name}-seed{seed}"))
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError("--backbone, --seeds: each name and each seed must come once")
    return runs


def execute(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do a run, or take its result if it is there.

    Returns:
        The content of its result.json.

    Raises:
        ValueError: if it fails, or its folder holds a run with other settings.
    """
    command = [
        *(sys.executable, "-m", _TRAINERS[arguments.trainer]),
        *("--config-file", arguments.config_file, "--num-gpus", str(arguments.num_gpus)),
        *(("--dataset-root", str(arguments.dataset_root)) if arguments.dataset_root else ()),
        *(("--classes", *arguments.classes) if arguments.classes else ()),
        *("--resume", *arguments.opts),
        *("MODEL.WEIGHTS", run.weights, "OUTPUT_DIR", str(run.folder), "SEED", str(run.seed)),
    ]
    settings = _settings(run, arguments)
    run.folder.mkdir(parents=True, exist_ok=True)
    marker, result_file = run.folder / "settings.json", run.folder / "result.json"
    if marker.is_file() and json.loads(marker.read_text()) != settings:
        raise ValueError(
            f"{run.folder} holds a run with other settings; choose another --output or remove it"
        )
    if marker.is_file() and result_file.is_file():
        result: dict[str, Any] = json.loads(result_file.read_text())
        if result.get("is_final"):
            print(f"{run.folder.name}: already there, AP50 {result['AP50']:.2f}", flush=True)
            return result
    write_json(marker, settings)
    print(f"{run.folder.name}: running, log in {run.folder / 'output.txt'}", flush=True)
    with (run.folder / "output.txt").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if status.returncode:
        lines = (run.folder / "output.txt").read_text().strip().splitlines()
        raise ValueError(f"{run.folder.name} failed: {lines[-1] if lines else 'no output'}")
    result = json.loads(result_file.read_text())
    print(f"{run.folder.name}: AP50 {result['AP50']:.2f}", flush=True)
    return result


def summarize(runs: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over the seeds, a row for each backbone.

    Returns:
        Rows with `name`, `seeds`, and for each score a pair (mean, sample standard deviation; None
        for a single seed).
    """
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [result for run, result in zip(runs, results, strict=True) if run.name == name]
        row: dict[str, Any] = {"name": name, "seeds": len(own)}
        for score in _SCORES:
            row[score] = _mean([result[score] for result in own])
        for label in own[0]["AP50_by_class"]:
            row[f"AP50 {label}"] = _mean([result["AP50_by_class"][label] for result in own])
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table.

    Examples:
        >>> print(table([{"name": "so", "seeds": 2, "AP": (12.34, 0.567), "AP50": (30.0, None)}]))
        | backbone | seeds | AP | AP50 |
        |---|---:|---:|---:|
        | so | 2 | 12.3 ± 0.6 | 30.0 |
    """
    scores = [key for key in rows[0] if key not in {"name", "seeds"}]
    lines = [
        f"| backbone | seeds | {' | '.join(scores)} |",
        f"|---|---:|{'---:|' * len(scores)}",
    ]
    for row in rows:
        cells = [_cell(*row[score]) for score in scores]
        lines.append(f"| {row['name']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _mean(values: list[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _settings(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    content = json.dumps([list(pair) for pair in read_values(arguments.config_file)])
    return {
        "trainer": arguments.trainer,
        "config": hashlib.sha256(content.encode()).hexdigest(),
        "options": arguments.opts,
        "dataset_root": str(arguments.dataset_root),
        "classes": arguments.classes,
        "seed": run.seed,
        "weights": run.weights and hashlib.sha256(Path(run.weights).read_bytes()).hexdigest(),
    }


def _read_test_set(arguments: argparse.Namespace) -> Dataset:
    settings = dict([*read_values(arguments.config_file), *read_overrides(arguments.opts)])
    dataset, _, _ = read_datasets(
        {
            "TEST": settings.get("DATASETS.TEST"),
            "ROOT": str(arguments.dataset_root or ""),
            "CLASSES": arguments.classes or [],
        },
        test_only=True,
    )
    return dataset


def _report(runs: Sequence[Run], dataset: Dataset, output: Path) -> None:
    results = [
        {"name": run.name, **json.loads((run.folder / "result.json").read_text())} for run in runs
    ]
    rows = summarize(runs, results)
    text = table(rows)
    classes = results[0]["classes"]
    shown = []
    for run in runs:
        predictions = read_predictions(run.folder)
        curves = average_precision(dataset, predictions, classes)["curves"]
        shown.append(Drawn(run.name, run.seed, predictions, curves, _losses(run.folder)))
    write_json(output / "comparison.json", {"rows": rows, "runs": results})
    atomic_write(output / "table.md", lambda file: file.write(f"{text}\n".encode()))
    pictures = draw_pictures(shown, dataset, classes, output)
    write_page(output / "index.html", rows, results, pictures)
    print(text)
    print(f"wrote {output / 'index.html'}")


def _losses(folder: Path) -> list[tuple[int, float]]:
    entries = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [(e["iteration"] + 1, e["total_loss"]) for e in entries if "total_loss" in e]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 after one line where an argument or an input is at fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--backbone",
        nargs="+",
        required=True,
        metavar="NAME=FILE",
        help="or the word random; another option must stand between these and KEY VALUE",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--trainer", choices=sorted(_TRAINERS), default="torchvision")
    parser.add_argument("--num-gpus", type=int, default=1)
    add_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    arguments = parser.parse_args(argv)
    try:
        runs = plan(arguments.backbone, arguments.seeds, arguments.output)
        # Before hours of training: the pictures need a test set in VOC format.
        test_set = _read_test_set(arguments)
        for run in runs:
            execute(run, arguments)
        _report(runs, test_set, arguments.output)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
