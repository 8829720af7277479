"""From the DATASETS section of a configuration to photographs, for both trainers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.voc import VOC_CLASSES, Dataset, read_dataset


def read_datasets(
    settings: Mapping[str, Any], test_only: bool = False
) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Read the training and the test set, print what they hold, and settle the classes.

    Args:
        settings: TRAIN and TEST (names), ROOT (a VOC-format folder, or empty for VOC in
            $DETECTRON2_DATASETS) and CLASSES (or empty for those of the annotations; VOC has its
            own twenty).
        test_only: leave the training set out, which is then the test set too.

    Returns:
        Training set, test set, class names in the order of the detector's outputs.

    Raises:
        ValueError: as `read_dataset` does, or if a name is missing.
    """
    devkit = not settings["ROOT"]
    root = Path(settings["ROOT"] or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not root.is_dir():
        raise ValueError(f"--dataset-root: no folder {root}")
    given = tuple(settings["CLASSES"]) or (VOC_CLASSES if devkit else None)
    sets = []
    for key in ("TEST",) if test_only else ("TRAIN", "TEST"):
        if not settings[key]:
            raise ValueError(f"config: DATASETS.{key} names no dataset")
        parts = [read_dataset(name, root, given, devkit) for name in settings[key]]
        merged = merge(parts)
        print(merged.summary(), flush=True)
        sets.append(merged)
    classes = given or tuple(sorted({name for dataset in sets for name in dataset.classes}))
    return sets[0], sets[-1], classes


def merge(parts: list[Dataset]) -> Dataset:
    """Several datasets as one.

    Raises:
        ValueError: if an image is in two of them.
    """
    if len(parts) == 1:
        return parts[0]
    photographs = tuple(photograph for part in parts for photograph in part.photographs)
    if len({photograph.path for photograph in photographs}) < len(photographs):
        raise ValueError(f"datasets {', '.join(part.name for part in parts)}: share images")
    return Dataset(
        "+".join(part.name for part in parts),
        photographs,
        tuple(line for part in parts for line in part.skipped),
    )
