"""Batches of images: of a folder, and the digits that need no download."""

import os
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset, TensorDataset
from torchvision.transforms import v2
from typing_extensions import override

from lightly_collapse._arguments import Count, ImageSize, Workers, validated
from lightly_collapse.io.digits import digit_colours, digit_scans
from lightly_collapse.io.images import (
    DIGITS,
    IMAGENET,
    ImageFiles,
    Normalization,
    UnreadableImageError,
)


class ImageFolderLoader:
    """Batches of the images in a folder and its subfolders; those that cannot be read are named.

    An image is resized so that its shorter side is `size`, cut to a square about its centre, and
    normalised.

    Args:
        folder: as for `ImageFiles`.
        size: height and width of the images, in pixels.
        batch_size: images a batch.
        workers: processes that read.
        limit: take a seeded random choice of at most this many images.
        normalization: of the colours.
        seed: of the choice.

    Attributes:
        unreadable: the files that could not be read so far, each with the reason.
        start: number of the first file of the batch that came last.

    Raises:
        ValueError: if the folder holds no image, or an argument is out of range.
        OSError: if it is no folder that can be read.
    """

    @validated
    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: ImageSize = 224,
        batch_size: Count = 64,
        workers: Workers = 0,
        limit: Count | None = None,
        normalization: Normalization = IMAGENET,
        seed: int = 0,
    ) -> None:
        files = ImageFiles(folder)
        if limit is not None and limit < len(files):
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
            files.paths = [files.paths[i] for i in sorted(order[:limit].tolist())]
        self.unreadable: list[str] = []
        self.start = self._first = 0
        self._loader = DataLoader(
            _Prepared(files, size, normalization),
            batch_size=batch_size,
            num_workers=min(workers, -(-len(files) // batch_size)),
            collate_fn=_collate,
        )

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, without what cannot be read."""
        self.unreadable.clear()
        self.start = self._first
        for images, failures in self._loader:
            self.unreadable += failures
            if images is not None:
                yield images
            self.start += 0 if images is None else len(images)
            self.start += len(failures)

    def part(self, first: int, stop: int) -> "ImageFolderLoader":
        """The batches from `first` to before `stop` as a loader of their own."""
        other = copy(self)
        other.unreadable = []
        other._loader = batches_between(self._loader, first, stop)
        other._first = other.start = self._first + first * (self._loader.batch_size or 1)
        return other


def part_of(loader: Any, first: int, stop: int) -> tuple[Any, int]:
    """Some batches of a loader as a loader of their own, and the number of their first image.

    Args:
        loader: an `ImageFolderLoader`, or a DataLoader that gives a data set in its order.
        first: number of a batch.
        stop: number of the batch after the last.

    Raises:
        ValueError: if it is another.
    """
    if isinstance(loader, ImageFolderLoader):
        part = loader.part(first, stop)
        return part, part.start
    if not isinstance(loader, DataLoader):
        raise ValueError(
            "dataloader must be a DataLoader, to be cut into parts, got " + type(loader).__name__
        )
    return batches_between(loader, first, stop), first * (loader.batch_size or 1)


def batches_between(loader: DataLoader[Any], first: int, stop: int) -> DataLoader[Any]:
    """The batches from `first` to before `stop` of a loader that neither shuffles nor samples.

    Args:
        loader: of a map-style data set, in its order.
        first: number of a batch.
        stop: number of the batch after the last.

    Raises:
        ValueError: if the loader gives its batches in another order than the data set's.

    Examples:
        >>> loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=4)
        >>> [batch[0].tolist() for batch in batches_between(loader, 1, 3)]
        [[4, 5, 6, 7], [8, 9]]
    """
    size = loader.batch_size
    if size is None or not isinstance(loader.sampler, SequentialSampler):
        raise ValueError(
            "dataloader must give the batches of a data set in its order, to be cut into parts, "
            f"got one with {type(loader.sampler).__name__}"
        )
    dataset: Any = loader.dataset
    rows = range(first * size, min(stop * size, len(dataset)))
    return DataLoader(
        Subset(dataset, rows),
        batch_size=size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
    )


_Sample = tuple[Tensor | None, str]


class _Prepared(Dataset[_Sample]):
    def __init__(self, files: ImageFiles, size: int, normalization: Normalization) -> None:
        self._files = files
        self._transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(size, antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                normalization,
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    @override
    def __getitem__(self, index: int) -> _Sample:
        try:
            return self._transform(self._files[index]), ""
        except UnreadableImageError as error:
            return None, str(error)


def _collate(samples: list[_Sample]) -> tuple[Tensor | None, list[str]]:
    images = [image for image, _ in samples if image is not None]
    return torch.stack(images) if images else None, [reason for _, reason in samples if reason]


@validated
def digits_loader(
    size: ImageSize = 32,
    batch_size: Count = 64,
    limit: Count | None = None,
    normalization: Normalization = DIGITS,
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of scikit-learn's 1,797 handwritten digits, grey in three channels, normalised.

    Args:
        size: height and width they are resized to, in pixels.
        batch_size: images a batch.
        limit: take the first of them only.
        normalization: of the colours.

    Returns:
        A loader of one-element batches.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> images = next(iter(digits_loader(batch_size=8)))[0]
        >>> images.shape
        torch.Size([8, 3, 32, 32])
    """
    images = digit_colours(digit_scans(size)[0][:limit])
    return DataLoader(TensorDataset(normalization(images.float() / 255)), batch_size=batch_size)


def image_batches(
    data: str,
    size: int,
    batch_size: int,
    normalization: Normalization,
    *,
    workers: int = 0,
    limit: int | None = None,
    seed: int = 0,
) -> ImageFolderLoader | DataLoader[tuple[Tensor, ...]]:
    """Batches of the images behind `--data`.

    Args:
        data: `digits` or a folder.
        size: height and width of the images, in pixels.
        batch_size: images a batch.
        normalization: of the colours.
        workers: processes that read a folder.
        limit: take at most so many, of a folder a seeded random choice.
        seed: of the choice.

    Raises:
        ValueError: as `ImageFolderLoader`.
        OSError: as `ImageFolderLoader`.
    """
    if data == "digits":
        return digits_loader(size, batch_size, limit, normalization)
    return ImageFolderLoader(data, size, batch_size, workers, limit, normalization, seed)
