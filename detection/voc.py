"""Photographs and boxes of PASCAL VOC, or of any folder in its format.

The folder holds Annotations/*.xml, JPEGImages/* and ImageSets/Main/<split>.txt. What is read here
is checked here: the trainers see finite boxes of positive area inside existing images, and class
names that are known.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.photographs import Box, Dataset, Photograph, clip_box, image_size

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Name of a dataset -> folders and splits; 07+12 is the usual training set.
VOC_DATASETS = {
    f"voc_{year}_{split}": ((f"VOC{year}", split),)
    for year in (2007, 2012)
    for split in ("train", "val", "trainval", "test")
    if (year, split) != (2012, "test")
} | {"voc_0712_trainval": (("VOC2007", "trainval"), ("VOC2012", "trainval"))}

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_TRUE, _FALSE = {"true", "yes"}, {"false", "no", "unspecified", "unknown"}


def read_voc(
    name: str, root: Path, classes: Sequence[str] | None = None, devkit: bool = False
) -> Dataset:
    """Read the splits that a dataset's name stands for.

    Args:
        name: a split in ImageSets/Main of `root`, or with `devkit` one of `VOC_DATASETS`.
        root: a VOC-format folder; with `devkit` the folder that holds VOC2007 and VOC2012.
        classes: the classes that may occur; any by default.
        devkit: whether `root` holds several years of VOC.

    Returns:
        The photographs, at least one, and at least one box.

    Raises:
        ValueError: if the list is missing or empty, an annotation is missing, malformed or of an
            unknown class, an image is missing, unreadable or of another size than annotated, or an
            image comes twice.
    """
    splits = [(root / folder, split) for folder, split in VOC_DATASETS[name]] if devkit else None
    skipped: list[str] = []
    photographs: list[Photograph] = []
    for folder, split in splits or [(root, name)]:
        photographs += [
            _read_photograph(folder, image_id, classes, skipped)
            for image_id in _read_list(folder, split)
        ]
    repeated = len(photographs) - len({photograph.image_id for photograph in photographs})
    if repeated:
        raise ValueError(f"dataset {name}: {repeated} images are listed twice")
    # VOC's twenty are known even where a split does not show them all.
    declared = tuple(classes or ()) if devkit else ()
    dataset = Dataset(name, tuple(photographs), tuple(skipped), declared)
    if not dataset.boxes:
        raise ValueError(f"dataset {name}: no box in its {len(photographs)} images")
    return dataset


def _read_list(folder: Path, split: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise ValueError(
            f"split {split!r}: no file {path}; there are: {', '.join(known[:12]) or 'none'}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"split {split!r}: {path} must be encoded as UTF-8 ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"split {split!r}: {path} is empty")
    for name in names:
        if not _is_inside(name):
            raise ValueError(f"split {split!r}: {name!r} in {path} leads out of the folder")
    return names


def _is_inside(name: str) -> bool:
    """Whether a name, `folder/name` included, stays in the folder that it is looked for in."""
    parts = name.replace("\\", "/").split("/")
    return not Path(name).is_absolute() and ".." not in parts and parts[-1] not in {"", "."}


def _read_photograph(
    folder: Path, image_id: str, classes: Sequence[str] | None, skipped: list[str]
) -> Photograph:
    path = folder / "Annotations" / f"{image_id}.xml"
    root = _parse(path)
    candidates = [folder / "JPEGImages" / f"{image_id}{suffix}" for suffix in _SUFFIXES]
    file_name = (root.findtext("filename") or "").strip()
    if _is_inside(file_name):
        # Of another type (.bmp, .webp) or case than the usual.
        candidates.append(folder / "JPEGImages" / file_name)
    image = next((candidate for candidate in candidates if candidate.is_file()), None)
    if image is None:
        raise ValueError(f"image {image_id}: no file {candidates[0]}")
    width, height = image_size(image)
    annotated = [int(_number(root, f"size/{side}", path, 0)) for side in ("width", "height")]
    # Some tools leave the size out or write 0: then the image's own counts.
    if all(annotated) and annotated != [width, height]:
        raise ValueError(
            f"annotation {path}: says {annotated[0]}x{annotated[1]} pixels, {image.name} has "
            f"{width}x{height}"
        )
    boxes = []
    for element in root.findall("object"):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"annotation {path}: an object without a name")
        if classes is not None and name not in classes:
            raise ValueError(
                f"annotation {path}: unknown class {name!r}; known: {', '.join(classes)}"
            )
        edges = [_number(element, f"bndbox/{e}", path) for e in ("xmin", "ymin", "xmax", "ymax")]
        if max(edges) <= 1 and edges[2] > edges[0] and edges[3] > edges[1]:
            raise ValueError(
                f"annotation {path}: {name} {edges} lies between 0 and 1: fractions of the image? "
                f"This format counts pixels"
            )
        # Pixels are counted from 1 and the last one belongs to the box; xmin = xmax has no area.
        corners = (edges[0] - 1, edges[1] - 1, edges[2], edges[3])
        clipped, why = clip_box(corners, width, height)
        if not why and edges[2] > edges[0] and edges[3] > edges[1]:
            boxes.append(Box(name, clipped, _flag(element, "difficult", path)))
            continue
        why = why or "no area"
        skipped.append(f"{path.name}: {name} [{', '.join(f'{e:g}' for e in edges)}], {why}")
    return Photograph(image_id, image, width, height, tuple(boxes))


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"annotation {path}: no such file")
    try:
        from defusedxml import DefusedXmlException, ElementTree  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ValueError("annotations in XML need defusedxml: pip install defusedxml") from error
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    # An unknown encoding is a LookupError, one that expat cannot read a ValueError.
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"annotation {path}: malformed XML ({error})") from error
    except ValueError as error:
        if not isinstance(error, DefusedXmlException):
            raise ValueError(f"annotation {path}: malformed XML ({error})") from error
        raise ValueError(
            f"annotation {path}: declares document types or entities, which no annotation needs "
            f"and which can exhaust the memory; not read"
        ) from error
    if root is None or root.tag != "annotation":
        raise ValueError(f"annotation {path}: must start with <annotation>")
    return root


def _number(element: Any, place: str, path: Path, default: float | None = None) -> float:
    text = element.findtext(place)
    if text is None or not text.strip():
        if default is not None:
            return default
        raise ValueError(f"annotation {path}: an object without {place}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"annotation {path}: {place} must be a number, got {text.strip()!r:.40}")
    return value


def _flag(element: Any, place: str, path: Path) -> bool:
    """0 and 1 in the format; some tools write words."""
    text = (element.findtext(place) or "").strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    return bool(_number(element, place, path, 0))
