"""From the DATASETS section of a configuration to photographs, for both trainers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.coco import COCO_DATASETS, annotation_file, read_coco
from detection.photographs import Dataset
from detection.voc import VOC_CLASSES, VOC_DATASETS, read_voc


def read_datasets(
    settings: Mapping[str, Any], test_only: bool = False, with_masks: bool = False
) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Read the training and the test set, print what they hold, and settle the classes.

    Args:
        settings: TRAIN and TEST (names), ROOT (a folder in VOC's or COCO's format, or empty for
            VOC and COCO in $DETECTRON2_DATASETS) and CLASSES (or empty for those that the
            annotations declare or use; VOC has its own twenty).
        test_only: leave the training set out, which is then the test set too.
        with_masks: whether every object needs a mask.

    Returns:
        Training set, test set, class names in the order of the detector's outputs.

    Raises:
        ValueError: as `read_voc` and `read_coco` do, or if a name is missing, or masks are asked of
            a format without them.
    """
    devkit = not settings["ROOT"]
    root = Path(settings["ROOT"] or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not root.is_dir():
        raise ValueError(f"--dataset-root: no folder {root}")
    given = tuple(settings["CLASSES"]) or None
    if given and len(set(given)) < len(given):
        raise ValueError(f"--classes: each must come once, got {', '.join(given)}")
    sets = []
    for key in ("TEST",) if test_only else ("TRAIN", "TEST"):
        if not settings[key]:
            raise ValueError(f"config: DATASETS.{key} names no dataset")
        parts = [_read(name, root, given, devkit, with_masks) for name in settings[key]]
        merged = merge(parts)
        print(merged.summary(), flush=True)
        sets.append(merged)
    declared = {dataset.categories for dataset in sets if dataset.categories}
    if len(declared) > 1:
        raise ValueError("datasets: training and test set declare different classes")
    classes = (
        given
        or next(iter(declared), None)
        or tuple(sorted({name for dataset in sets for name in dataset.classes}))
    )
    return sets[0], sets[-1], classes


def _read(
    name: str, root: Path, classes: tuple[str, ...] | None, devkit: bool, with_masks: bool
) -> Dataset:
    if devkit and name in COCO_DATASETS:
        return read_coco(name, root / "coco", COCO_DATASETS[name], classes, with_masks)
    if not devkit and annotation_file(root, name):
        return read_coco(name, root, None, classes, with_masks)
    if devkit and name not in VOC_DATASETS:
        raise ValueError(
            f"DATASETS: unknown {name!r}; known: {', '.join([*VOC_DATASETS, *COCO_DATASETS])}; for "
            f"another folder give --dataset-root"
        )
    if with_masks:
        raise ValueError(f"dataset {name}: MODEL.MASK_ON needs masks, which VOC's format lacks")
    return read_voc(name, root, (classes or VOC_CLASSES) if devkit else classes, devkit)


def merge(parts: list[Dataset]) -> Dataset:
    """Several datasets as one.

    Raises:
        ValueError: if an image is in two of them, or they declare different classes.
    """
    if len(parts) == 1:
        return parts[0]
    title = ", ".join(part.name for part in parts)
    photographs = tuple(photograph for part in parts for photograph in part.photographs)
    names = {photograph.image_id for photograph in photographs}
    files = {photograph.path for photograph in photographs}
    if min(len(names), len(files)) < len(photographs):
        raise ValueError(f"datasets {title}: share images, or names of images")
    if len({part.categories for part in parts}) > 1:
        raise ValueError(f"datasets {title}: declare different classes")
    return Dataset(
        "+".join(part.name for part in parts),
        photographs,
        tuple(line for part in parts for line in part.skipped),
        parts[0].categories,
    )
