"""Photographs and boxes of PASCAL VOC, or of any folder in its format.

The folder holds Annotations/*.xml, JPEGImages/* and ImageSets/Main/<split>.txt. What is read here
is checked here: the trainers see finite boxes of positive area inside existing images, and class
names that are known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException, ElementTree
from PIL import Image, UnidentifiedImageError

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
_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Box:
    """One annotated object.

    Attributes:
        name: its class.
        corners: x0, y0, x1, y1 in pixels from the image's upper left corner; 0 and width or height
            are the image's edges.
        is_difficult: whether the annotator marked it so; evaluation neither asks for such objects
            nor counts finding them as wrong.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool = False


@dataclass(frozen=True)
class Photograph:
    """One image and its objects.

    Attributes:
        image_id: its name in the split's list.
        path: the image file.
        width: in pixels, as displayed.
        height: likewise.
        boxes: its objects, without those skipped.
    """

    image_id: str
    path: Path
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Dataset:
    """The photographs of one or several splits.

    Attributes:
        name: as the configuration has it.
        photographs: in the order of the lists.
        skipped: one line for every box left out: file, class, corners as annotated and why.
    """

    name: str
    photographs: tuple[Photograph, ...]
    skipped: tuple[str, ...]

    @property
    def boxes(self) -> int:
        """How many objects there are."""
        return sum(len(photograph.boxes) for photograph in self.photographs)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes that occur, sorted."""
        return tuple(sorted({b.name for photograph in self.photographs for b in photograph.boxes}))

    def summary(self) -> str:
        """One line, and one more for each of the first skipped boxes."""
        text = f"{self.name}: {len(self.photographs)} images, {self.boxes} boxes"
        if self.skipped:
            text += f"; {len(self.skipped)} boxes skipped:"
        more = [f"  and {len(self.skipped) - 5} more"] if len(self.skipped) > 5 else []
        return "\n".join([text, *(f"  {line}" for line in self.skipped[:5]), *more])


def read_dataset(
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
    if devkit and name not in VOC_DATASETS:
        raise ValueError(
            f"DATASETS: unknown {name!r}; known: {', '.join(VOC_DATASETS)}; for another folder in "
            f"VOC format give --dataset-root"
        )
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
    dataset = Dataset(name, tuple(photographs), tuple(skipped))
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
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"split {split!r}: {path} is empty")
    for name in names:
        if "/" in name or "\\" in name or name in {".", ".."}:
            raise ValueError(f"split {split!r}: {name!r} in {path} is no file name")
    return names


def _read_photograph(
    folder: Path, image_id: str, classes: Sequence[str] | None, skipped: list[str]
) -> Photograph:
    path = folder / "Annotations" / f"{image_id}.xml"
    root = _parse(path)
    candidates = [folder / "JPEGImages" / f"{image_id}{suffix}" for suffix in _SUFFIXES]
    image = next((candidate for candidate in candidates if candidate.is_file()), None)
    if image is None:
        raise ValueError(f"image {image_id}: no file {candidates[0]}")
    width, height = _image_size(image)
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
        # Pixels are counted from 1 and the last one belongs to the box.
        x0, y0, x1, y1 = edges[0] - 1, edges[1] - 1, edges[2], edges[3]
        # Many tools count from 0: one pixel over the edge is no error, the box is clipped.
        if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
            why = f"outside the image of {width}x{height}"
        elif edges[2] <= edges[0] or edges[3] <= edges[1]:
            why = "no area"
        else:
            corners = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
            difficult = bool(_number(element, "difficult", path, 0))
            boxes.append(Box(name, corners, difficult))
            continue
        skipped.append(f"{path.name}: {name} [{', '.join(f'{e:g}' for e in edges)}], {why}")
    return Photograph(image_id, image, width, height, tuple(boxes))


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"annotation {path}: no such file")
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"annotation {path}: malformed XML ({error})") from error
    except DefusedXmlException as error:
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


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image {path}: cannot be read ({error})") from error
    return (height, width) if turned else (width, height)
