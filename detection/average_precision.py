"""COCO's average precision over what both trainers found, by pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.photographs import Dataset

_SCORES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


@dataclass(frozen=True)
class Prediction:
    """The detections in one image.

    Attributes:
        image_id: the image's name in its split.
        boxes: x0, y0, x1, y1 in pixels of the original image.
        scores: 0 to 1.
        classes: index into the run's class names.
        masks: run-length encodings, one a box; None from a detector without masks.
    """

    image_id: str
    boxes: list[list[float]]
    scores: list[float]
    classes: list[int]
    masks: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Curve:
    """Precision at 101 recalls 0, 0.01, ..., 1, at an overlap of 0.5; and AP50, 0 to 100."""

    precision: list[float]
    ap50: float


def average_precision(
    dataset: Dataset,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    masks: bool = False,
) -> dict[str, Any]:
    """COCO's average precision over all classes that occur in the dataset.

    Args:
        dataset: the ground truth; difficult objects are neither asked for nor counted against.
        predictions: one for each photograph at most.
        classes: the names the predictions' indices stand for.
        masks: compare masks instead of boxes.

    Returns:
        `AP` (mean over overlaps 0.5, 0.55, ..., 0.95), `AP50`, `AP75`, and AP of objects below
        32x32 pixels (`AP small`), up to 96x96 (`AP medium`) and above (`AP large`), all 0 to 100
        and None where the dataset has no such object; and `curves`: a `Curve` by class name.

    Raises:
        ValueError: if pycocotools is not installed, or a prediction names an unknown image.
    """
    try:
        from pycocotools.coco import COCO  # noqa: PLC0415
        from pycocotools.cocoeval import COCOeval  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ValueError("evaluation needs pycocotools: pip install pycocotools") from error
    ids = {photograph.image_id: i + 1 for i, photograph in enumerate(dataset.photographs)}
    if unknown := [p.image_id for p in predictions if p.image_id not in ids]:
        raise ValueError(f"predictions: {unknown[0]!r} is no image of {dataset.name}")
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = _content(dataset, classes, _truth(dataset, ids, classes, masks))
        found.dataset = _content(dataset, classes, _found(predictions, ids, masks))
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools says -1 where there is no object to find.
    values = [None if value < 0 else 100 * float(value) for value in evaluation.stats[:6]]
    # (overlaps, recalls, classes, areas, detections an image): overlap 0.5, all areas, most.
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    curves = {
        name: Curve(column.tolist(), 100 * float(column.mean()))
        for name, column in zip(classes, precision.T, strict=True)
        if (column >= 0).all()
    }
    return {**dict(zip(_SCORES, values, strict=True)), "curves": curves}


def encode_mask(mask: Any) -> dict[str, Any]:
    """A mask as COCO's compressed run-length encoding.

    Args:
        mask: (height, width), boolean.
    """
    from pycocotools import mask as codec  # noqa: PLC0415

    encoded = codec.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()}


def decode_mask(mask: Any, height: int, width: int) -> Any:
    """Polygons or a run-length encoding as a boolean array (height, width)."""
    from pycocotools import mask as codec  # noqa: PLC0415

    return codec.decode(_runs(mask, height, width)).astype(bool)


def _runs(mask: Any, height: int, width: int) -> Any:
    from pycocotools import mask as codec  # noqa: PLC0415

    if isinstance(mask, list):
        return codec.merge(codec.frPyObjects(mask, height, width))
    if isinstance(mask["counts"], list):
        return codec.frPyObjects(mask, height, width)
    return mask


def _content(dataset: Dataset, classes: Sequence[str], entries: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": i + 1, "width": photograph.width, "height": photograph.height}
            for i, photograph in enumerate(dataset.photographs)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
        "annotations": [{**entry, "id": i + 1} for i, entry in enumerate(entries)],
    }


def _truth(dataset: Dataset, ids: Any, classes: Sequence[str], masks: bool) -> Any:
    for photograph in dataset.photographs:
        for box in photograph.boxes:
            corners = _corners(box.corners)
            entry = {
                "image_id": ids[photograph.image_id],
                "category_id": classes.index(box.name) + 1,
                "bbox": corners,
                "area": corners[2] * corners[3] if box.area is None else box.area,
                "iscrowd": int(box.is_difficult),
            }
            if masks:
                entry["segmentation"] = _runs(box.mask, photograph.height, photograph.width)
            yield entry


def _found(predictions: Sequence[Prediction], ids: Any, masks: bool) -> Any:
    for prediction in predictions:
        for i, (corners, score, label) in enumerate(
            zip(prediction.boxes, prediction.scores, prediction.classes, strict=True)
        ):
            box = _corners(corners)
            entry = {
                "image_id": ids[prediction.image_id],
                "category_id": label + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
            if masks:
                if prediction.masks is None:
                    raise ValueError(f"predictions: {prediction.image_id!r} has no masks")
                from pycocotools import mask as codec  # noqa: PLC0415

                entry["segmentation"] = prediction.masks[i]
                entry["area"] = float(codec.area(prediction.masks[i]))
            yield entry


def _corners(corners: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = corners
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
