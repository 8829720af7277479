"""Images to pretrain on, with their held-out part."""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2
from typing_extensions import override

from lightly_collapse.io.digits import digit_colours, digits_split
from lightly_collapse.io.images import (
    CIFAR,
    DIGITS,
    ReadableImages,
    UnreadableImageError,
    open_rgb,
    unreadable_notes,
)
from lightly_collapse.pretrain.data.augment import (
    DeviceViews,
    ViewSettings,
    evaluation_view,
    worker_views,
)
from lightly_collapse.pretrain.data.base import PretrainData, check_at_least

MIN_IMAGE_SIZE = 8
"""Pixels of the smallest image: a small view has half as many, and a blur needs four."""


class _Memory(Dataset[Any]):
    """Images in memory that are taken a batch at a time, in one indexing."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


CROPS = ViewSettings(min_scale=0.08, jitter=0.0, gray=0.0, blur=(0.0, 0.0))
"""Random crops and flips and nothing else, on which published linear evaluations train."""


def _as_it_is(batch: Any) -> Any:
    return batch


class SmallImages(PretrainData):
    """Images small enough to stay in memory, their views drawn in batches on the device."""

    probe_views = CROPS
    """The crops on which a linear evaluation trains."""

    @abstractmethod
    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The used training and the held-out images: (n, 3, size, size) uint8, (n,) int64."""

    @override
    def setup(self, stage: str) -> None:
        """Load the images, once."""
        if hasattr(self, "_train"):
            return
        train, held_out = self.load()
        self._train, self._held_out = _Memory(*train), _Memory(*held_out)
        self.train_count = len(self._train)
        self._draw: DeviceViews | None = None

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """The training images, shuffled."""
        settings, global_views = self._views()
        self._draw = DeviceViews(settings, self._train.images.shape[-1], global_views)
        return self._train_loader(self._train, collate_fn=_as_it_is)

    @override
    def evaluation_loaders(self, bank_images: int | None = None) -> list[DataLoader[Any]]:
        """Loaders of training images and of held-out ones, neither augmented nor shuffled."""
        bank = _Memory(self._train.images[:bank_images], self._train.labels[:bank_images])
        return [self._plain_loader(part, collate_fn=_as_it_is) for part in (bank, self._held_out)]

    @override
    def train_labels(self) -> Tensor:
        """The labels of the training images."""
        return self._train.labels

    @override
    def crop_batches(self, chosen: Tensor, generator: torch.Generator) -> Iterable[Any]:
        """One epoch of training images, cropped and mirrored in batches."""
        images = self._train.images[chosen]
        draw = DeviceViews(self.probe_views, images.shape[-1], global_views=1)
        loader = self._plain_loader(
            _Memory(images, self._train.labels[chosen]),
            collate_fn=_as_it_is,
            shuffle=True,
            generator=generator,
        )
        for batch, labels in loader:
            yield self.normalization(draw(batch.float() / 255)[0]), labels

    @override
    def training_images(self, count: int) -> Iterable[Any]:
        """The first training images, as bytes."""
        return self._train.images[:count]

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn the bytes into colours, and in training into views."""
        images, labels = batch
        images = images.float() / 255
        if self.trainer is not None and self.trainer.training and self._draw is not None:
            return [self.normalization(view) for view in self._draw(images)], labels
        return self.normalization(images), labels


class Digits(SmallImages):
    """The handwritten digits of scikit-learn, which need no download.

    Args:
        image_size: height and width, in pixels.
        kwargs: see `PretrainData`.
    """

    normalization = DIGITS
    num_classes = 10
    # Mirrored or cropped far, a digit would be another.
    probe_views = replace(CROPS, min_scale=0.6, flip=0.0)

    def __init__(self, image_size: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least("image_size", image_size, MIN_IMAGE_SIZE)
        self.image_size = image_size

    @override
    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The split of the demo with seed 0, as grey colours."""
        split = digits_split(self.image_size)
        chosen = self._chosen(len(split.train_labels))
        return (
            (digit_colours(split.train_images[chosen]), split.train_labels[chosen]),
            (digit_colours(split.test_images), split.test_labels),
        )


class CIFAR10(SmallImages):
    """CIFAR-10 as torchvision reads it.

    Args:
        root: folder that holds `cifar-10-batches-py`, or to download to.
        download: fetch it where it is missing.
        kwargs: see `PretrainData`.
    """

    normalization = CIFAR
    num_classes = 10
    dataset: type[datasets.CIFAR10] = datasets.CIFAR10

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download = root, download

    @override
    def prepare_data(self) -> None:
        """Download on one process, if asked to."""
        if self.download:
            self.dataset(self.root, download=True)

    @override
    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The official training and test images."""
        try:
            train, test = (self.dataset(self.root, train=part) for part in (True, False))
        except RuntimeError as error:
            raise ValueError(
                f"data.root {self.root} must hold {self.dataset.__name__} as torchvision stores "
                "it; pass data.download true to fetch it"
            ) from error
        (images, labels), held_out = (
            (torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets))
            for part in (train, test)
        )
        chosen = self._chosen(len(labels))
        return (images[chosen], labels[chosen]), held_out


class CIFAR100(CIFAR10):
    """CIFAR-100 as torchvision reads it.

    Args:
        kwargs: see `CIFAR10` and `PretrainData`.
    """

    num_classes = 100
    dataset = datasets.CIFAR100


def _part(root: str, part: str) -> Path:
    folder = Path(root) / part
    if not folder.is_dir():
        raise ValueError(
            f"data.root {root} must hold the folder {part} with one folder of images a class"
        )
    return folder


def _count_classes(root: str, part: str) -> int:
    """How many folders of images there are, without reading an image."""
    return sum(entry.is_dir() for entry in _part(root, part).iterdir())


def _image_folder(root: str, part: str, **kwargs: Any) -> datasets.ImageFolder:
    folder = _part(root, part)
    try:
        return datasets.ImageFolder(str(folder), loader=open_rgb, **kwargs)
    except FileNotFoundError as error:
        raise ValueError(
            f"data.root: {folder} must hold one folder of images a class: {error}"
        ) from error


class ClassFolders(PretrainData):
    """A folder of training images and one of held-out images, each with one folder a class.

    Args:
        root: folder that holds `train` and `val`.
        train: name of the folder of training images.
        val: name of the folder of held-out images.
        image_size: height and width of a global view, in pixels.
        kwargs: see `PretrainData`.
    """

    def __init__(
        self,
        root: str = "data",
        train: str = "train",
        val: str = "val",
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("image_size", image_size, MIN_IMAGE_SIZE)
        self.root, self.train, self.val, self.image_size = root, train, val, image_size

    @property
    @override
    def held_out_name(self) -> str:
        """The folder of the held-out images."""
        return f"images in {Path(self.root, self.val).absolute()}"

    @property
    @override
    def num_classes(self) -> int:
        """Number of folders of training images."""
        return _count_classes(self.root, self.train)


class SmallImageFolder(ClassFolders, SmallImages):
    """A folder of small images with one folder a class, resized once and kept in memory.

    Args:
        root: see `ClassFolders`.
        image_size: height and width to resize to, in pixels.
        kwargs: see `ClassFolders`.
    """

    normalization = CIFAR

    def __init__(self, root: str = "data", *, image_size: int = 32, **kwargs: Any) -> None:
        super().__init__(root, image_size=image_size, **kwargs)

    @override
    def load(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Read the images of both folders; of the training images only those that are used."""
        train, val = (_image_folder(self.root, part) for part in (self.train, self.val))
        if train.classes != val.classes:
            raise ValueError(
                f"data.root: {self.train} and {self.val} must hold the same classes, got "
                f"{len(train.classes)} and {len(val.classes)}"
            )
        chosen = self._chosen(len(train))
        return self._read([train.samples[i] for i in chosen]), self._read(val.samples)

    def _read(self, samples: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        size = (self.image_size, self.image_size)
        images = torch.empty(len(samples), 3, *size, dtype=torch.uint8)
        labels: list[int] = []
        unreadable: list[str] = []
        for path, label in samples:
            try:
                image = open_rgb(path)
            except UnreadableImageError as error:
                unreadable.append(str(error))
                continue
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            images[len(labels)] = v2.functional.pil_to_tensor(image)
            labels.append(label)
        if unreadable and not labels:
            raise ValueError(f"data.root must hold images that can be read: {unreadable[0]}")
        if unreadable:
            warnings.warn(" ".join(unreadable_notes(unreadable)), stacklevel=2)
        return images[: len(labels)], torch.tensor(labels)


class ImageFolder(ClassFolders):
    """A folder of images of any size with one folder a class, read by worker processes."""

    @override
    def setup(self, stage: str) -> None:
        """Find the images."""
        plain = evaluation_view(self.image_size, self.normalization)
        self._bank = _image_folder(self.root, self.train, transform=plain)
        self._held_out = _image_folder(self.root, self.val, transform=plain)
        self._indices = self._chosen(len(self._bank))
        self.train_count = len(self._indices)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """The training images, shuffled, as views."""
        settings, global_views = self._views()
        transform = worker_views(
            settings,
            self.image_size,
            self.normalization.mean,
            self.normalization.std,
            global_views,
        )
        dataset = _image_folder(self.root, self.train, transform=transform)
        return self._train_loader(ReadableImages(Subset(dataset, self._indices)))

    @override
    def evaluation_loaders(self, bank_images: int | None = None) -> list[DataLoader[Any]]:
        """Loaders of training images and of held-out ones, neither augmented nor shuffled."""
        order = torch.randperm(
            len(self._indices), generator=torch.Generator().manual_seed(0)
        ).tolist()[:bank_images]
        bank = Subset(self._bank, [self._indices[i] for i in order])
        return [self._plain_loader(ReadableImages(part)) for part in (bank, self._held_out)]

    @override
    def train_labels(self) -> Tensor:
        """The labels of the training images."""
        return torch.tensor(self._bank.targets)[self._indices]

    @override
    def crop_batches(self, chosen: Tensor, generator: torch.Generator) -> Iterable[Any]:
        """One epoch of training images, cropped and mirrored by the workers."""
        normal = self.normalization
        crop = worker_views(CROPS, self.image_size, normal.mean, normal.std, global_views=1)
        dataset = _image_folder(self.root, self.train, transform=crop)
        part = ReadableImages(Subset(dataset, [self._indices[i] for i in chosen.tolist()]))
        for views, labels in self._plain_loader(part, shuffle=True, generator=generator):
            yield views[0], labels
