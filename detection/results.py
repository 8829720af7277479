"""What a run leaves behind: predictions, average precision, one result file.

Both trainers write the same files, and average precision is computed here for both, so that their
numbers can stand in one table.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from detection.voc import Dataset
from lightly_collapse.io.files import atomic_write


@dataclass(frozen=True)
class Prediction:
    """The detections in one image.

    Attributes:
        image_id: the image's name in its split.
        boxes: x0, y0, x1, y1 in pixels of the original image.
        scores: 0 to 1.
        classes: index into the run's class names.
    """

    image_id: str
    boxes: list[list[float]]
    scores: list[float]
    classes: list[int]


@dataclass(frozen=True)
class Curve:
    """Precision at 101 recalls 0, 0.01, ..., 1, at an overlap of 0.5; and AP50, 0 to 100."""

    precision: list[float]
    ap50: float


def average_precision(
    dataset: Dataset, predictions: Sequence[Prediction], classes: Sequence[str]
) -> dict[str, Any]:
    """COCO's average precision by torchmetrics, over all classes that occur in the dataset.

    Args:
        dataset: what is there; difficult objects are neither asked for nor counted against.
        predictions: one for each photograph at most.
        classes: the names the predictions' indices stand for.

    Returns:
        `AP` (mean over overlaps 0.5, 0.55, ..., 0.95), `AP50`, `AP75`, all 0 to 100, and `curves`:
        a `Curve` by class name.

    Raises:
        ValueError: if torchmetrics has no backend to count with.
    """
    from torchmetrics.detection import MeanAveragePrecision  # noqa: PLC0415

    try:
        metric = MeanAveragePrecision(class_metrics=True, extended_summary=True)
    except ModuleNotFoundError as error:
        raise ValueError("evaluation needs pycocotools: pip install pycocotools") from error
    by_image = {prediction.image_id: prediction for prediction in predictions}
    metric.warn_on_many_detections = False
    for photograph in dataset.photographs:
        found = by_image.get(photograph.image_id, Prediction(photograph.image_id, [], [], []))
        metric.update(
            [
                {
                    "boxes": torch.tensor(found.boxes).reshape(-1, 4),
                    "scores": torch.tensor(found.scores),
                    "labels": torch.tensor(found.classes, dtype=torch.int64),
                }
            ],
            [
                {
                    "boxes": torch.tensor([box.corners for box in photograph.boxes]).reshape(-1, 4),
                    "labels": torch.tensor(
                        [classes.index(box.name) for box in photograph.boxes], dtype=torch.int64
                    ),
                    "iscrowd": torch.tensor(
                        [box.is_difficult for box in photograph.boxes], dtype=torch.int64
                    ),
                }
            ],
        )
    result = metric.compute()
    # (overlaps, recalls, classes, areas, detections an image): overlap 0.5, all areas, most.
    precision = result["precision"][0, :, :, 0, -1]
    curves = {}
    for column, index in enumerate(result["classes"].reshape(-1).tolist()):
        values = precision[:, column]
        if (values >= 0).all():
            curves[classes[int(index)]] = Curve(values.tolist(), 100 * float(values.mean()))
    return {
        "AP": 100 * float(result["map"]),
        "AP50": 100 * float(result["map_50"]),
        "AP75": 100 * float(result["map_75"]),
        "curves": curves,
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    atomic_write(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def write_result(
    folder: Path,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Evaluate, and write predictions.json and result.json.

    Args:
        folder: the run's OUTPUT_DIR.
        dataset: what was tested on.
        predictions: what was found.
        classes: the names the predictions' indices stand for.
        facts: what else is to be in the result: trainer, seed, weights, seconds, ...

    Returns:
        The content of result.json.
    """
    scores = average_precision(dataset, predictions, classes)
    curves = scores.pop("curves")
    result = {
        **scores,
        "AP50_by_class": {name: curve.ap50 for name, curve in curves.items()},
        "evaluator": "torchmetrics MeanAveragePrecision (COCO)",
        "dataset": dataset.name,
        "images": len(dataset.photographs),
        "boxes": dataset.boxes,
        "skipped_boxes": list(dataset.skipped),
        "classes": list(classes),
        **facts,
    }
    write_json(folder / "predictions.json", [asdict(prediction) for prediction in predictions])
    write_json(folder / "result.json", result)
    return result


def read_predictions(folder: Path) -> list[Prediction]:
    """What `write_result` wrote."""
    return [Prediction(**entry) for entry in json.loads((folder / "predictions.json").read_text())]
