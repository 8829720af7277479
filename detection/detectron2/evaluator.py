"""Evaluation with detectron2: the Pascal VOC evaluator's numbers, and those of both trainers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from detection.average_precision import Prediction, encode_mask
from detection.photographs import Dataset


class Evaluator(DatasetEvaluator):  # type: ignore[misc]
    """Keeps the predictions, and has the Pascal VOC evaluator count them too (boxes only).

    Args:
        dataset_name: as registered with detectron2.
        dataset: the test set.
        ground_truth: folder with the boxes as the Pascal VOC evaluator reads them, from text
            files in which names hold no spaces or slashes: images and classes go by number there.
            None leaves its numbers out.
    """

    def __init__(
        self, dataset_name: str, dataset: Dataset, classes: Sequence[str], ground_truth: Path | None
    ) -> None:
        self._dataset = dataset
        self._voc: Any = None
        if ground_truth is not None:
            if comm.is_main_process():
                write_ground_truth(dataset, ground_truth, classes)
            comm.synchronize()
            MetadataCatalog.get(dataset_name).set(
                dirname=str(ground_truth),
                split="test",
                year=2007 if dataset.name.startswith("voc_2007") else 2012,
            )
            self._voc = PascalVOCDetectionEvaluator(dataset_name)
            self._voc._class_names = [f"class{i}" for i in range(len(classes))]
        self.predictions: list[Prediction] = []
        self.pascal_voc: dict[str, Any] | None = None

    def reset(self) -> None:
        """Forget all predictions."""
        self.predictions = []
        if self._voc is not None:
            self._voc.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in the detections of a batch."""
        if self._voc is not None:
            self._voc.process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            masks = None
            if found.has("pred_masks"):
                masks = [encode_mask(np.asarray(mask)) for mask in found.pred_masks]
            self.predictions.append(
                Prediction(
                    self._dataset.photographs[int(image["image_id"])].image_id,
                    found.pred_boxes.tensor.tolist(),
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                    masks,
                )
            )

    def evaluate(self) -> dict[str, Any]:
        """Gather the predictions of all processes in `predictions` of the main one.

        Returns:
            The Pascal VOC evaluator's AP, AP50 and AP75, under `pascal_voc`.
        """
        scores = self._voc.evaluate() if self._voc is not None else None
        gathered = comm.gather(self.predictions, dst=0)
        if not comm.is_main_process():
            return {}
        self.predictions = [prediction for part in gathered for prediction in part]
        if scores is None:
            return {}
        voc: dict[str, Any] = {name: float(value) for name, value in scores["bbox"].items()}
        # Without an object that is not difficult there is nothing to average over.
        voc = {name: None if np.isnan(value) else value for name, value in voc.items()}
        voc["metric"] = "VOC 2007, 11 points" if self._voc._is_2007 else "VOC 2012, area"
        self.pascal_voc = voc
        return {}


def write_ground_truth(dataset: Dataset, folder: Path, classes: Sequence[str]) -> None:
    """The boxes of a data set as files that detectron2's Pascal VOC evaluator reads."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for i, photograph in enumerate(dataset.photographs):
        objects = []
        for box in photograph.boxes:
            x0, y0, x1, y1 = box.corners
            edges = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            inner = "".join(f"<{name}>{round(value)}</{name}>" for name, value in edges.items())
            objects.append(
                f"<object><name>class{classes.index(box.name)}</name>"
                f"<pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>{int(box.is_difficult)}</difficult><bndbox>{inner}</bndbox></object>"
            )
        text = f"<annotation>{''.join(objects)}</annotation>\n"
        (folder / "Annotations" / f"{i:06d}.xml").write_text(text)
    names = "".join(f"{i:06d}\n" for i in range(len(dataset.photographs)))
    (folder / "ImageSets" / "Main" / "test.txt").write_text(names)
