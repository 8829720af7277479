"""The files of a run: run.json at its start, predictions.json and result.json at its end.

Both trainers write the same files, and average precision is computed here for both, so that their
numbers can stand in one table.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detection.average_precision import Prediction, average_precision
from detection.photographs import Dataset
from lightly_collapse.io.files import atomic_write

NOTHING_TO_EVALUATE = (
    "--eval-only: nothing to evaluate; give MODEL.WEIGHTS, or --resume with an OUTPUT_DIR that has "
    "a checkpoint"
)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON lacks, are a ValueError."""
    text = json.dumps(content, indent=1, allow_nan=False)
    atomic_write(path, f"{text}\n".encode())


def describe_scores(result: Mapping[str, Any]) -> str:
    """AP, AP50 and AP75 in one line.

    Examples:
        >>> describe_scores({"AP": 1.0, "AP50": 2.345, "AP75": None})
        'AP 1.00, AP50 2.35, AP75 none'
    """
    return ", ".join(
        f"{name} none" if result[name] is None else f"{name} {result[name]:.2f}"
        for name in ("AP", "AP50", "AP75")
    )


class RunRecord:
    """What a run is: its classes, and the weights it began with; kept in run.json.

    Args:
        folder: the run's OUTPUT_DIR.
        classes: the names the detector's outputs stand for.
        resume: whether the folder's own run goes on, whose classes must then be these.

    Raises:
        ValueError: if the folder's run has other classes.
    """

    def __init__(self, folder: Path, classes: Sequence[str], resume: bool) -> None:
        self._path = folder / "run.json"
        self.facts: dict[str, Any] = {"classes": list(classes)}
        if not (resume and self._path.is_file()):
            return
        known = json.loads(self._path.read_text())
        if known["classes"] != list(classes):
            raise ValueError(
                f"--resume: {folder} holds a run with the classes {', '.join(known['classes'])}, "
                f"not {', '.join(classes)}"
            )
        self.facts = known

    def add(self, **facts: Any) -> None:
        """Add facts and write the file."""
        self.facts |= facts
        write_json(self._path, self.facts)

    def check_loaded(self, path: str, loaded: int, total: int, allow_partial: bool) -> None:
        """Record how many of the backbone's tensors a weight file gave.

        Raises:
            ValueError: if fewer than all, unless partial weights are allowed.
        """
        if loaded < total and not allow_partial:
            raise ValueError(
                f"weights {path}: gave {loaded} of the backbone's {total} tensors, the rest would "
                f"be random: another network, other names (`lightly-collapse export` writes the "
                f"right ones) or another depth than configured; --allow-partial fine-tunes anyway"
            )
        if loaded < total:
            print(f"warning: {path} gave {loaded} of the backbone's {total} tensors", flush=True)
        self.add(backbone_tensors=[loaded, total])


def write_result(
    folder: Path,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    facts: Mapping[str, Any],
    iteration: int | None = None,
) -> dict[str, Any]:
    """Evaluate, and write predictions.json and result.json.

    Args:
        folder: the run's OUTPUT_DIR.
        dataset: the test set.
        predictions: the detections.
        classes: the names the predictions' indices stand for.
        facts: what else is to be in the result: trainer, seed, weights, seconds, ...
        iteration: of an evaluation during training, which goes into files with its number.

    Returns:
        The content of result.json.
    """
    scores = average_precision(dataset, predictions, classes)
    curves = scores.pop("curves")
    result = {
        **scores,
        "AP50_by_class": {name: curve.ap50 for name, curve in curves.items()},
        "evaluator": "pycocotools (COCO)",
        "dataset": dataset.name,
        "images": len(dataset.photographs),
        "boxes": dataset.boxes,
        "skipped_boxes": list(dataset.skipped),
        "classes": list(classes),
        **facts,
    }
    if predictions and all(prediction.masks is not None for prediction in predictions):
        by_mask = average_precision(dataset, predictions, classes, masks=True)
        by_mask.pop("curves")
        result["masks"] = by_mask
    suffix = "" if iteration is None else f"_{iteration:07d}"
    content = [
        {key: value for key, value in asdict(prediction).items() if value is not None}
        for prediction in predictions
    ]
    write_json(folder / f"predictions{suffix}.json", content)
    write_json(folder / f"result{suffix}.json", result)
    return result


def read_predictions(folder: Path) -> list[Prediction]:
    """The predictions that `write_result` wrote."""
    return [Prediction(**entry) for entry in json.loads((folder / "predictions.json").read_text())]


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Iteration (from 1) and total loss, as metrics.json has them.

    Of an iteration that was repeated after an interruption the later line counts; a line that the
    interruption cut off is left out.
    """
    losses: dict[int, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "total_loss" in entry:
            losses[entry["iteration"] + 1] = entry["total_loss"]
    return sorted(losses.items())
