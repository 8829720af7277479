"""Fine-tune several backbones over several seeds, and show how they differ.

    python -m detection.compare --config-file configs/detection/small.yaml \
        --dataset-root bccd_voc --seeds 0 1 --output runs/comparison \
        --backbone random simclr=simclr-{seed}.pkl so=so-{seed}.pkl

A run that is finished is not done again, one that was interrupted is resumed from its last
checkpoint. Writes table.md, comparison.json, pictures and index.html into the output folder.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.average_precision import average_precision
from detection.config import (
    OneLineParser,
    add_arguments,
    fragment_beside,
    parse_arguments,
    read_overrides,
    read_values,
    run_command,
)
from detection.datasets import read_datasets
from detection.page import write_page
from detection.photographs import Dataset
from detection.pictures import Drawn, draw_pictures
from detection.results import describe_scores, read_losses, read_predictions, write_json
from detection.statistics import markdown_table, summarize, verdicts, warnings
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.locks import hold_folder

_TRAINERS = {"torchvision": "detection.train_torchvision", "detectron2": "detection.train_net"}


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    Attributes:
        name: of the backbone.
        weights: its file; empty for random initialisation.
        seed: of the fine-tuning, and where the file name says so of pretraining.
        folder: its OUTPUT_DIR.
        learning_rate: SOLVER.BASE_LR; None for the configuration's.
    """

    name: str
    weights: str
    seed: int
    folder: Path
    learning_rate: float | None = None


def plan(
    backbones: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    learning_rates: Sequence[float] = (),
) -> list[Run]:
    """The runs, seed by seed, so that an early stop leaves whole comparisons.

    Args:
        backbones: `random`, or NAME=FILE; `{seed}` in FILE stands for the seed.
        seeds: at least one.
        output: the folder that gets one folder for each run.
        learning_rates: to try with every backbone, each a row of the table; none for the
            configuration's.

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
            for rate in learning_rates or (None,):
                row = name if rate is None else f"{name} lr {rate:g}"
                folder = output / f"{row.replace(' ', '-')}-seed{seed}"
                runs.append(Run(row, weights, seed, folder, rate))
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError("--backbone, --seeds, --learning-rates: each must come once")
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
        *("--config-file", arguments.config_file),
        *(("--num-gpus", str(arguments.num_gpus)) if arguments.num_gpus is not None else ()),
        *(("--allow-partial",) if arguments.allow_partial else ()),
        *(("--dataset-root", str(arguments.dataset_root)) if arguments.dataset_root else ()),
        *(("--classes", *arguments.classes) if arguments.classes else ()),
        *("--resume", *arguments.opts),
        *("MODEL.WEIGHTS", run.weights, "OUTPUT_DIR", str(run.folder), "SEED", str(run.seed)),
        *(("SOLVER.BASE_LR", str(run.learning_rate)) if run.learning_rate is not None else ()),
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
        print(f"{run.folder.name}: already there, {describe_scores(result)}", flush=True)
        return result
    write_json(marker, settings)
    print(f"{run.folder.name}: running, log in {run.folder / 'output.txt'}", flush=True)
    with (run.folder / "output.txt").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if status.returncode:
        lines = (run.folder / "output.txt").read_text().strip().splitlines()
        raise ValueError(f"{run.folder.name} failed: {lines[-1] if lines else 'no output'}")
    result = json.loads(result_file.read_text())
    print(f"{run.folder.name}: {describe_scores(result)}", flush=True)
    return result


def _settings(run: Run, arguments: argparse.Namespace) -> dict[str, Any]:
    content = json.dumps([list(pair) for pair in read_values(arguments.config_file)])
    return {
        "trainer": arguments.trainer,
        "config": hashlib.sha256(content.encode()).hexdigest(),
        "options": arguments.opts,
        "dataset_root": str(arguments.dataset_root),
        "classes": arguments.classes,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "weights": run.weights and _sha256(Path(run.weights)),
        "fragment": _sha256(fragment) if (fragment := fragment_beside(run.weights)) else None,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_test_set(arguments: argparse.Namespace) -> Dataset:
    settings = dict([*read_values(arguments.config_file), *read_overrides(arguments.opts)])
    dataset, _, _ = read_datasets(
        {
            "TEST": settings.get("DATASETS.TEST"),
            "ROOT": str(arguments.dataset_root or settings.get("DATASETS.ROOT", "")),
            "CLASSES": arguments.classes or settings.get("DATASETS.CLASSES", []),
        },
        test_only=True,
    )
    return dataset


def _report(runs: Sequence[Run], dataset: Dataset, output: Path) -> None:
    results = [
        {
            "name": run.name,
            "learning_rate": run.learning_rate,
            **json.loads((run.folder / "result.json").read_text()),
        }
        for run in runs
    ]
    rows = summarize(results)
    text = "\n".join([markdown_table(rows), "", *verdicts(results), *warnings(results)])
    classes = results[0]["classes"]
    shown = []
    for run in runs:
        predictions = read_predictions(run.folder)
        curves = average_precision(dataset, predictions, classes)["curves"]
        shown.append(Drawn(run.name, run.seed, predictions, curves, read_losses(run.folder)))
    write_json(output / "comparison.json", {"rows": rows, "runs": results})
    atomic_write(output / "table.md", lambda file: file.write(f"{text}\n".encode()))
    pictures = draw_pictures(shown, dataset, classes, output)
    write_page(output / "index.html", rows, results, pictures)
    print(text)
    print(f"wrote {output / 'index.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is that of `run_command`."""
    parser = OneLineParser("detection.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--backbone",
        nargs="+",
        required=True,
        metavar="NAME=FILE",
        help="exported weights, or the word random",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--trainer", choices=sorted(_TRAINERS), default="torchvision")
    parser.add_argument("--num-gpus", type=int, help="as for the trainer")
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[], metavar="RATE", help="each a row"
    )
    add_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    arguments = parse_arguments(parser, argv)

    def run_all() -> None:
        runs = plan(arguments.backbone, arguments.seeds, arguments.output, arguments.learning_rates)
        # Before hours of training: a test set that cannot be read is found out now.
        test_set = _read_test_set(arguments)
        with hold_folder(check_writable_folder(arguments.output)):
            for run in runs:
                execute(run, arguments)
            _report(runs, test_set, arguments.output)

    return run_command(parser, run_all)


if __name__ == "__main__":
    sys.exit(main())
