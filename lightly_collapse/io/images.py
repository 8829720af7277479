"""Images: the files of a folder, decoded, and how they are normalised."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from typing_extensions import override

from lightly_collapse.io.digits import digit_scans

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_NAMES_SHOWN = 5
_Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from the channels of images in [0, 1], and what they are divided by.

    Attributes:
        mean: of red, green and blue.
        std: of red, green and blue.
    """

    mean: _Colour
    std: _Colour

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: (..., 3, height, width) in [0, 1].
        """
        mean, std = (images.new_tensor(c)[:, None, None] for c in (self.mean, self.std))
        return (images - mean) / std


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
DIGITS = Normalization((0.305, 0.305, 0.305), (0.33, 0.33, 0.33))


@dataclass(frozen=True)
class Preparation:
    """How images become a model's input.

    Attributes:
        image_size: height and width, in pixels.
        normalization: of the colours.
        reason: where these come from, in a few words.
        held_out: the held-out images of the pretraining, prepared; None where they are not known.
        held_out_name: what they are, such as `held-out images of Digits`.
    """

    image_size: int
    normalization: Normalization
    reason: str
    held_out: Callable[[], Any] | None = None
    held_out_name: str = ""


class ImageFiles(Dataset[Image.Image]):
    """The images in a folder and its subfolders, decoded as RGB when they are asked for.

    Args:
        folder: searched for jpg, png, bmp, gif, tiff, webp, ppm and pgm files.

    Attributes:
        paths: of the files, sorted.

    Raises:
        ValueError: if the folder holds no image.
        OSError: if it is no folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not Path(folder).is_dir():
            raise NotADirectoryError(f"data must be `digits` or a folder of images, got {folder}")
        self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self.paths:
            raise ValueError(
                f"data must hold images ({', '.join(sorted(_SUFFIXES))}), got none in {folder}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @override
    def __getitem__(self, index: int) -> Image.Image:
        """The image of that number.

        Raises:
            UnreadableImageError: if it cannot be decoded.
        """
        return open_rgb(self.paths[index])


class UnreadableImageError(ValueError):
    """An image file cannot be decoded; the message names it and the reason."""


class ReadableImages(Dataset[Any]):
    """A data set of image files in which the next image stands for one that cannot be read.

    Which images come is a function of the files alone, so that a resumed training sees the same.
    The first time that a process meets a file it cannot read, it warns.

    Args:
        images: raises an `UnreadableImageError` where one cannot be decoded.

    Attributes:
        unreadable: the files that this process could not read, each with the reason.
    """

    def __init__(self, images: Any) -> None:
        self._images = images
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        return len(self._images)

    @override
    def __getitem__(self, index: int) -> Any:
        """The image of that number, or the next that can be read.

        Raises:
            ValueError: if none can.
        """
        for i in range(len(self)):
            try:
                return self._images[(index + i) % len(self)]
            except UnreadableImageError as error:
                if str(error) not in self.unreadable:
                    self.unreadable.append(str(error))
                    warnings.warn(f"{error}; the next image is taken for it", stacklevel=2)
        raise ValueError(
            f"data must hold an image that can be read, got {len(self)} that cannot, such as "
            f"{self.unreadable[0]}"
        )


def unreadable_notes(unreadable: Sequence[str]) -> list[str]:
    """A sentence that counts and names files that could not be read; none where all could.

    Args:
        unreadable: the files, each with the reason.
    """
    if not unreadable:
        return []
    images = "image" if len(unreadable) == 1 else "images"
    more = len(unreadable) - _NAMES_SHOWN
    names = ", ".join(unreadable[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return [f"{len(unreadable)} {images} could not be read and were left out: {names}."]


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image file as 8-bit RGB, upright.

    Grey of 16 bits is scaled to 8 bits, not clipped. The orientation in the EXIF data is applied.
    Of an animation the first frame is taken. Transparency is dropped, as in torchvision.

    Args:
        path: of the file, in any format that Pillow reads.

    Returns:
        The image, in mode RGB.

    Raises:
        UnreadableImageError: if it cannot be decoded, or its values have no known range (32-bit
            integers and floats of TIFF).
    """
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(_eight_bits(file)).convert("RGB")
    # What Pillow raises on damaged files of its many formats.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableImageError(f"{os.fspath(path)}: {reason}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, or where its values have 16 bits, the image scaled to 8 bits."""
    # Pillow gives PNG and PGM of 16 bits in mode I where it has no mode of 16 bits for them.
    if not image.mode.startswith("I;16") and (image.mode != "I" or image.format == "TIFF"):
        if image.mode in {"I", "F"}:
            raise ValueError(f"values of 32 bits (mode {image.mode}) have no known range")
        return image
    values = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    scaled.info["exif"] = image.getexif().tobytes()
    return scaled


def load_images(data: str) -> Sequence[Image.Image] | ImageFiles:
    """The images behind `--data`, undecoded or small.

    Args:
        data: `digits` for scikit-learn's scans of 8 x 8 pixels in grey, or a folder.

    Returns:
        A map-style dataset of images.

    Raises:
        ValueError: as `ImageFiles`.
        OSError: as `ImageFiles`.

    Examples:
        >>> load_images("digits")[0].size
        (8, 8)
    """
    if data != "digits":
        return ImageFiles(data)
    scans = digit_scans(8)[0] * 255
    return [v2.functional.to_pil_image(scan) for scan in scans.to(torch.uint8)]


class InColour:
    """Images in RGB, whatever they are in a data set: what models take.

    Args:
        images: map-style, of PIL images.

    Examples:
        >>> InColour(load_images("digits"))[0].mode
        'RGB'
    """

    def __init__(self, images: Sequence[Image.Image] | ImageFiles) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        """The image of that number."""
        return self._images[index].convert("RGB")
