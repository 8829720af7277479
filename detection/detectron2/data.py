"""Photographs as detectron2's records, and how they are decoded."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T  # noqa: N812
from detectron2.structures import BoxMode

from detection.photographs import Dataset, load_pixels


def register(dataset: Dataset, role: str, classes: Sequence[str]) -> str:
    """Make a dataset known to detectron2.

    Args:
        dataset: what was read.
        role: `train` or `test`.
        classes: in the order of the detector's outputs.

    Returns:
        Its name there.
    """
    name = f"{dataset.name} ({role})"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    records = [
        {
            "file_name": str(photograph.path),
            "image_id": f"{i:06d}",
            "width": photograph.width,
            "height": photograph.height,
            "annotations": [
                {
                    "bbox": list(box.corners),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": classes.index(box.name),
                    "iscrowd": int(box.is_crowd),
                    **({} if box.mask is None else {"segmentation": _mask(box.mask)}),
                }
                for box in photograph.boxes
            ],
        }
        for i, photograph in enumerate(dataset.photographs)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(classes))
    return name


def _mask(mask: Any) -> Any:
    """detectron2 reads polygons and compressed run lengths."""
    if isinstance(mask, list) or not isinstance(mask["counts"], list):
        return mask
    from pycocotools import mask as codec  # noqa: PLC0415

    return codec.frPyObjects(mask, *mask["size"])


class Mapper(DatasetMapper):  # type: ignore[misc]
    """detectron2's mapper, decoding images as the other trainer does and naming broken ones."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """A record with its image, and in training its boxes and masks, augmented."""
        record = copy.deepcopy(dataset_dict)
        size = (record["width"], record["height"])
        pixels = T.AugInput(load_pixels(Path(record["file_name"]), size))
        transforms = self.augmentations(pixels)
        image = pixels.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, image.shape[:2])
        else:
            record.pop("annotations", None)
        return record
