"""The bench's images: digits and CIFAR-10 at 16 pixels, as they are or with a fault of the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.images import CIFAR
from lightly_collapse.pretrain.data import Digits, SmallImageFolder
from lightly_collapse.pretrain.data.datasets import SmallImages

SIZE = 16
_TRAIN, _HELD_OUT = 1280, 640
_Parts = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Faulty(SmallImages):
    """Training images with duplicates, views with noise; evaluation on the images as they are."""

    distinct: int | None
    noise: float

    @override
    def setup(self, stage: str) -> None:
        if hasattr(self, "_train"):
            return
        super().setup(stage)
        self._clean = self._train.images, self._train.labels
        if self.distinct is not None:
            chosen = torch.arange(len(self._train)) % self.distinct
            self._train.images = self._train.images[chosen]
            self._train.labels = self._train.labels[chosen]

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        loader = super().train_dataloader()
        if self.noise > 0:
            self._draw = _noisy(self._draw, self.noise)  # type: ignore[assignment]
        return loader

    @override
    def random_steps(self) -> dict[str, dict[str, Any]]:
        steps = super().random_steps()
        return {**steps, "noise": {"noise": 0.0}} if self.noise > 0 else steps

    def evaluation_arrays(self) -> _Parts:
        """Training and held-out images as they are, ready for the backbone, with their labels."""
        parts = self._clean, (self._held_out.images, self._held_out.labels)
        train, held_out = (
            (self.normalization(images.float() / 255), labels) for images, labels in parts
        )
        return train, held_out

    @override
    def evaluation_loaders(self, bank_images: int | None = None) -> list[DataLoader[Any]]:
        faulty = self._train.images, self._train.labels
        self._train.images, self._train.labels = self._clean
        try:
            return super().evaluation_loaders(bank_images)
        finally:
            self._train.images, self._train.labels = faulty


def _noisy(draw: Any, noise: float) -> Callable[[Tensor], list[Tensor]]:
    return lambda images: [view + noise * torch.randn_like(view) for view in draw(images)]


class BenchDigits(_Faulty, Digits):
    """Digits, possibly with faults.

    Args:
        distinct: number of training images that differ; the others are copies of them.
        noise: standard deviation of the noise on every pixel of a view, whose range is [0, 1].
        kwargs: see `Digits`.
    """

    def __init__(self, distinct: int | None = None, noise: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distinct, self.noise = distinct, noise


class BenchCIFAR10(_Faulty):
    """The CIFAR-10 images that `prepare_cifar10` wrote, possibly with faults.

    Args:
        path: the file.
        distinct: as for `BenchDigits`.
        noise: as for `BenchDigits`.
        kwargs: see `PretrainData`.
    """

    normalization = CIFAR
    num_classes = 10
    image_size = SIZE

    def __init__(
        self, path: str, distinct: int | None = None, noise: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.distinct, self.noise = path, distinct, noise

    @override
    def load(self) -> _Parts:
        images = torch.load(self.path, weights_only=True)
        return images["train"], images["held_out"]


def prepare_cifar10(root: Path, path: Path) -> None:
    """Write the images of all CIFAR-10 runs into one file, if it is not there.

    Args:
        root: folder that holds `train/<class>/*` and `test/<class>/*`.
        path: the file.

    Raises:
        ValueError: if the folder does not hold CIFAR-10.
    """
    if path.exists():
        return
    data = SmallImageFolder(str(root), val="test", image_size=SIZE, train_images=_TRAIN)
    data.setup("fit")
    (train, held_out) = data.evaluation_loaders()
    kept = torch.randperm(
        len(held_out.dataset),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
    )[:_HELD_OUT]
    images: Any = {
        "train": (train.dataset.images, train.dataset.labels),  # type: ignore[attr-defined]
        "held_out": held_out.dataset.__getitems__(kept.tolist()),  # type: ignore[attr-defined]
    }
    atomic_write(path, lambda file: torch.save(images, file))
