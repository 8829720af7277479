"""Images to measure on: a folder of files, or the digits that need no download."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


class ImageFolderLoader:
    """Batches of the images in a folder and its subfolders; those that cannot be read are named.

    An image is resized so that its shorter side is `size`, cut to a square about its centre, and
    normalised.

    Args:
        folder: searched for jpg, png, bmp, gif, tiff, webp and ppm files.
        size: height and width of the images, in pixels.
        batch_size: images a batch.
        workers: processes that read.
        limit: take a seeded random choice of at most this many images.
        mean: subtracted from the three channels in [0, 1].
        std: the three channels are then divided by.
        seed: of the choice.

    Attributes:
        unreadable: the files that could not be read so far, each with the reason.

    Raises:
        ValueError: if the folder holds no image, or an argument is out of range.
        OSError: if it is no folder that can be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: int = 224,
        batch_size: int = 64,
        workers: int = 0,
        limit: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
    ) -> None:
        _check_positive(size=size, batch_size=batch_size, limit=limit)
        folder = Path(folder)
        if not folder.is_dir():
            raise NotADirectoryError(f"data must be a folder of images, got {folder}")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not paths:
            raise ValueError(
                f"data must hold images ({', '.join(sorted(_SUFFIXES))}), got none in {folder}"
            )
        if limit is not None and limit < len(paths):
            order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))
            paths = [paths[i] for i in sorted(order[:limit].tolist())]
        self.unreadable: list[str] = []
        self._loader = DataLoader(
            _Files(paths, size, mean, std),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
        )

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, without what cannot be read."""
        self.unreadable.clear()
        for images, failures in self._loader:
            self.unreadable += failures
            if images is not None:
                yield images


_Sample = tuple[Tensor | None, str]


class _Files(Dataset[_Sample]):
    def __init__(
        self, paths: Sequence[Path], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self._paths = paths
        self._transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(size, antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> _Sample:
        path = self._paths[index]
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        # What Pillow raises on damaged files of its many formats.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            return None, f"{path}: {' '.join(str(error).split())}"
        return self._transform(rgb), ""


def _collate(samples: list[_Sample]) -> tuple[Tensor | None, list[str]]:
    images = [image for image, _ in samples if image is not None]
    return torch.stack(images) if images else None, [reason for _, reason in samples if reason]


def digits_loader(
    size: int = 32, batch_size: int = 64, limit: int | None = None
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of scikit-learn's 1,797 handwritten digits, grey in three channels, normalised.

    Args:
        size: height and width they are resized to, in pixels.
        batch_size: images a batch.
        limit: take the first of them only.

    Returns:
        A loader of one-element batches.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> images = next(iter(digits_loader(batch_size=8)))[0]
        >>> images.shape
        torch.Size([8, 3, 32, 32])
    """
    _check_positive(size=size, batch_size=batch_size, limit=limit)
    grey = torch.from_numpy(load_digits().images).float()[:limit, None] / 16
    images = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear")
    rgb = v2.functional.normalize(
        images.expand(-1, 3, -1, -1), list(IMAGENET_MEAN), list(IMAGENET_STD)
    )
    return DataLoader(TensorDataset(rgb), batch_size=batch_size)


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
