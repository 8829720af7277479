"""Photographs, boxes and masks of COCO, or of any folder with annotations in its JSON format.

The folder holds annotations/<split>.json (or instances_<split>.json) and the images in images/,
<split>/ or the folder itself; COCO's own sets are found in $DETECTRON2_DATASETS/coco.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.photographs import Box, Dataset, Photograph, clip_box, image_size

COCO_DATASETS = {
    f"coco_{year}_{split}": f"{split}{year}" for year in (2014, 2017) for split in ("train", "val")
}
# Below this many images their headers are read at once; above, sizes are checked when decoded.
_CHECKED_IMAGES = 20_000
_LARGEST = 1e15  # whole numbers in JSON have no bound, and NaN is below none


def annotation_file(root: Path, split: str) -> Path | None:
    """The JSON file of a split, if the folder is in COCO's format.

    Args:
        root: the folder.
        split: `train`, `test`, ...
    """
    names = (f"annotations/{split}.json", f"annotations/instances_{split}.json", f"{split}.json")
    return next((root / name for name in names if (root / name).is_file()), None)


def read_coco(
    name: str,
    root: Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    with_masks: bool = False,
) -> Dataset:
    """Read one annotation file.

    Args:
        name: of the data set, for messages.
        root: the folder.
        split: of the annotation file; `name` by default.
        classes: the classes that may occur; those the file declares by default.
        with_masks: whether every object must have a mask.

    Returns:
        The photographs, at least one, and at least one box. `categories` are the declared classes
        in the order of their ids.

    Raises:
        ValueError: if the file is missing, malformed or inconsistent (an unknown image or category,
            a value that is no number, a mask that is none), or an image is missing or unreadable.
    """
    split = split or name
    path = annotation_file(root, split)
    if path is None:
        raise ValueError(f"split {split!r}: no file {root / 'annotations' / f'{split}.json'}")
    content = _read(path)
    names = _categories(content, path)
    by_image = _annotations(content, path, names, classes)
    images = content["images"]
    files = {image.get("file_name") for image in images}
    if len({image.get("id") for image in images}) < len(images) or len(files) < len(images):
        raise ValueError(f"annotations {path}: images are listed twice")
    skipped: list[str] = []
    photographs = []
    for image in images:
        photographs.append(
            _photograph(image, by_image.pop(image.get("id"), []), path, root, skipped, names)
        )
    if by_image:
        raise ValueError(f"annotations {path}: objects of unknown images {_some(by_image)}")
    _check_units(photographs, path)
    if len(photographs) <= _CHECKED_IMAGES:
        for photograph in photographs:
            _check_size(photograph, path)
    if with_masks:
        _check_masks(photographs, path)
    dataset = Dataset(name, tuple(photographs), tuple(skipped), tuple(classes or names.values()))
    if not dataset.boxes:
        raise ValueError(f"dataset {name}: no box in its {len(photographs)} images")
    return dataset


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"annotations {path}: malformed JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"annotations {path}: must hold a list of objects under {key!r}")
        for field in ("id", "file_name", "image_id", "category_id"):
            if wrong := [e[field] for e in entries if isinstance(e.get(field), (list, dict))]:
                raise ValueError(
                    f"annotations {path}: {field} in {key!r} must be a number or a name, got "
                    f"{wrong[0]!r:.60}"
                )
    return dict(content)


def _categories(content: Mapping[str, Any], path: Path) -> dict[Any, str]:
    pairs = [(entry.get("id"), entry.get("name")) for entry in content["categories"]]
    if any(not isinstance(i, int) or not isinstance(n, str) or not n for i, n in pairs):
        raise ValueError(f"annotations {path}: every category needs a whole number id and a name")
    names = dict(sorted(pairs))
    if len(set(names.values())) < len(pairs):
        raise ValueError(f"annotations {path}: categories come twice")
    return names


def _annotations(
    content: Mapping[str, Any],
    path: Path,
    names: Mapping[Any, str],
    classes: Sequence[str] | None,
) -> dict[Any, list[dict[str, Any]]]:
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        name = names.get(entry.get("category_id"))
        if name is None:
            raise ValueError(
                f"annotations {path}: object {entry.get('id')} of unknown category "
                f"{entry.get('category_id')!r}"
            )
        if classes is not None and name not in classes:
            raise ValueError(
                f"annotations {path}: unknown class {name!r}; known: {', '.join(classes)}"
            )
        by_image.setdefault(entry.get("image_id"), []).append(entry)
    return by_image


def _photograph(
    image: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    path: Path,
    root: Path,
    skipped: list[str],
    names: Mapping[Any, str],
) -> Photograph:
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(f"annotations {path}: image {image.get('id')!r} without file_name")
    if Path(file_name).is_absolute() or ".." in Path(file_name).parts:
        raise ValueError(f"annotations {path}: {file_name!r} leads out of the folder")
    split = path.stem.removeprefix("instances_")
    places = [root / folder / file_name for folder in ("images", split, "")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"image {file_name} of {path}: no file {places[0]} nor {places[1]}")
    width, height = image.get("width"), image.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        width, height = image_size(file)
    boxes = []
    for entry in entries:
        name = names[entry["category_id"]]
        label = f"{path.name}: object {entry.get('id')}, {name}"
        if entry.get("bbox") in (None, []):
            skipped.append(f"{label}, no box")
            continue
        x, y, w, h = _numbers(entry["bbox"], 4, label)
        corners, why = clip_box((x, y, x + w, y + h), width, height)
        if why:
            skipped.append(f"{label} [{x:g}, {y:g}, {w:g}, {h:g}], {why}")
            continue
        crowd = entry.get("iscrowd", 0) in (1, True)
        area = entry.get("area")
        boxes.append(
            Box(
                name,
                corners,
                is_difficult=crowd,
                is_crowd=crowd,
                mask=_mask(entry.get("segmentation"), label, (height, width)),
                area=_numbers([area], 1, label)[0] if area else None,
            )
        )
    return Photograph(file_name, file, width, height, tuple(boxes))


def _mask(value: Any, label: str, size: tuple[int, int]) -> Any:
    """Polygons or a run-length encoding, checked; None where there is none."""
    if value in (None, [], {}):
        return None
    if isinstance(value, list):
        polygons = [_numbers(polygon, None, f"{label}: segmentation") for polygon in value]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise ValueError(f"{label}: a polygon needs three points at least, x and y of each")
        return polygons
    if isinstance(value, dict) and value.get("size") == list(size):
        counts = value.get("counts")
        runs = _decode_runs(counts) if isinstance(counts, str) else counts
        if isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs):
            if sum(runs) == size[0] * size[1]:
                return {"size": list(size), "counts": counts}
            raise ValueError(
                f"{label}: the runs of its mask sum to {sum(runs)}, not {size[0]} x {size[1]}"
            )
    raise ValueError(
        f"{label}: segmentation must be polygons or a run-length encoding of size {list(size)}"
    )


def _decode_runs(text: str) -> list[int] | None:
    """The lengths in COCO's compressed encoding; None where it is none.

    Five bits a character, least significant first, the sixth for "more follows"; from the fourth
    run on each is the difference to the last but one. pycocotools leaves pixels beyond the last
    run undefined, so that their number has to be checked here.
    """
    digits = [ord(character) - 48 for character in text]
    if not digits or min(digits) < 0 or max(digits) > 63 or digits[-1] & 32:
        return None
    runs: list[int] = []
    value = shift = 0
    for digit in digits:
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            if shift > 60:  # longer than any number of pixels
                return None
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _numbers(value: Any, count: int | None, label: str) -> list[float]:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise ValueError(f"{label}: must be a list of {count or 'some'} numbers, got {value!r:.60}")
    if any(
        isinstance(v, bool) or not isinstance(v, (int, float)) or not abs(v) < _LARGEST
        for v in value
    ):
        raise ValueError(f"{label}: must hold finite numbers, got {value!r:.60}")
    return [float(v) for v in value]


def _check_units(photographs: Sequence[Photograph], path: Path) -> None:
    ends = [max(box.corners[2:]) for photograph in photographs for box in photograph.boxes]
    if ends and max(ends) <= 1:
        raise ValueError(
            f"annotations {path}: all boxes lie between 0 and 1: fractions of the image? This "
            f"format counts pixels"
        )


def _check_size(photograph: Photograph, path: Path) -> None:
    width, height = image_size(photograph.path)
    if (width, height) == (photograph.width, photograph.height):
        return
    is_turned = (height, width) == (photograph.width, photograph.height)
    raise ValueError(
        f"annotations {path}: say {photograph.width}x{photograph.height} pixels, "
        f"{photograph.path.name} has {width}x{height}"
        + (
            " as displayed: were its boxes drawn before its EXIF tag turned it?"
            if is_turned
            else ""
        )
    )


def _check_masks(photographs: Sequence[Photograph], path: Path) -> None:
    for photograph in photographs:
        for box in photograph.boxes:
            if box.mask is None:
                raise ValueError(
                    f"annotations {path}: {box.name} in {photograph.path.name} has no "
                    f"segmentation, which MODEL.MASK_ON needs"
                )


def _some(names: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, list(names)[:3])) + (", ..." if len(names) > 3 else "")
