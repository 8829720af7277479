"""Photographs and their boxes, whatever format they were annotated in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lightly_collapse.io.images import UnreadableImageError, open_rgb

_EXIF_ORIENTATION = 274
# What Pillow raises on damaged or oversized files of its many formats.
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Box:
    """One annotated object.

    Attributes:
        name: its class.
        corners: x0, y0, x1, y1 in pixels from the image's upper left corner; 0 and width or height
            are the image's edges.
        is_difficult: evaluation neither asks for such objects nor counts finding them as wrong.
        is_crowd: a group of objects under one annotation (COCO): difficult, and not trained on.
        mask: COCO's segmentation, a list of polygons or a run-length encoding; None without one.
        area: in square pixels, for AP by size; None for the area of the corners.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool = False
    is_crowd: bool = False
    mask: Any = None
    area: float | None = None


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
        categories: the classes that the annotation format declares; empty for VOC's, which declares
            none.
    """

    name: str
    photographs: tuple[Photograph, ...]
    skipped: tuple[str, ...]
    categories: tuple[str, ...] = ()

    @property
    def boxes(self) -> int:
        """How many objects there are."""
        return sum(len(photograph.boxes) for photograph in self.photographs)

    @property
    def classes(self) -> tuple[str, ...]:
        """The declared classes, or the names of all classes that occur, sorted."""
        found = {b.name for photograph in self.photographs for b in photograph.boxes}
        return self.categories or tuple(sorted(found))

    @property
    def has_masks(self) -> bool:
        """Whether there is a box with a mask."""
        return any(box.mask is not None for p in self.photographs for box in p.boxes)

    @property
    def has_run_lengths(self) -> bool:
        """Whether an object that is trained on has a run-length encoding for a mask."""
        return any(
            isinstance(box.mask, dict) and not box.is_crowd
            for photograph in self.photographs
            for box in photograph.boxes
        )

    def summary(self) -> str:
        """One line, and one more for each of the first skipped boxes."""
        text = f"{self.name}: {len(self.photographs)} images, {self.boxes} boxes"
        if self.skipped:
            text += f"; {len(self.skipped)} boxes skipped:"
        more = [f"  and {len(self.skipped) - 5} more"] if len(self.skipped) > 5 else []
        return "\n".join([text, *(f"  {line}" for line in self.skipped[:5]), *more])


def clip_box(
    corners: tuple[float, float, float, float], width: int, height: int
) -> tuple[tuple[float, float, float, float], str]:
    """The box inside its image, and why it is to be left out ('' if it is not).

    One pixel over the edge is clipped, since some tools count from 0 and some from 1.

    Examples:
        >>> clip_box((-1, 0, 5, 5), 10, 10)
        ((0.0, 0, 5, 5), '')
        >>> clip_box((4, 4, 4, 9), 10, 10)[1]
        'no area'
    """
    x0, y0, x1, y1 = corners
    if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
        return corners, f"outside the image of {width}x{height}"
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return corners, "no area"
    return clipped, ""


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as displayed, read from the header.

    Raises:
        ValueError: if the file is no image or larger than Pillow's limit for untrusted images.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except _UNREADABLE as error:
        raise ValueError(f"image {path}: cannot be read ({error})") from error
    return (height, width) if turned else (width, height)


def load_pixels(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """An image as RGB, (height, width, 3), rotated as its EXIF tag says.

    Decoded as `lightly_collapse.io.images.open_rgb` does: grey images of 16 bits are scaled to 8,
    CMYK and palettes are converted, transparency is dropped.

    Args:
        path: the image file.
        size: the width and height that it must have.

    Raises:
        ValueError: naming the file, if it cannot be decoded or has another size.
    """
    try:
        pixels = np.array(open_rgb(path))
    except UnreadableImageError as error:
        raise ValueError(f"image {path}: cannot be read ({error.__cause__})") from error
    if size is not None and pixels.shape[1::-1] != tuple(size):
        raise ValueError(
            f"image {path}: has {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotation says "
            f"{size[0]}x{size[1]}"
        )
    return pixels
