"""What all data modules share: their loaders, and the order and random numbers of training."""

import itertools
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from lightly_collapse._arguments import Workers, check
from lightly_collapse.io.images import IMAGENET, Normalization
from lightly_collapse.pretrain.data.augment import ViewSettings


def _mixed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def check_at_least(name: str, value: int | None, low: int) -> None:
    """Refuse a setting of the data below its least value; None is let through.

    Raises:
        ValueError: naming the setting.
    """
    if value is not None and value < low:
        raise ValueError(f"data.{name} must be at least {low}, got {value}")


class _EpochLoader(DataLoader[Any]):
    """A loader whose order and workers' random numbers follow from the seed and the epoch alone.

    Workers start anew each epoch: persistent ones would carry their random state over from epochs
    that a resumed run has not seen.
    """

    def __init__(self, dataset: Any, seed: int, epoch: Callable[[], int], **kwargs: Any) -> None:
        self._seed, self._epoch = seed, epoch
        super().__init__(dataset, generator=torch.Generator(), **kwargs)

    @override
    def __iter__(self) -> Any:
        sampler: Any = self.sampler
        sampler.set_epoch(self._epoch())
        self.generator.manual_seed(_mixed(self._seed, self._epoch(), sampler.rank))
        return super().__iter__()


class _Prepared:
    """The batches of a loader as they come to the model within a trainer."""

    def __init__(self, data: "PretrainData", loader: DataLoader[Any]) -> None:
        self._data, self._loader = data, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield self._data.on_after_batch_transfer(batch, 0)


_VIEWS = ViewSettings()


class PretrainData(LightningDataModule):
    """Training images as views; a bank of training images and held-out images as they are.

    Training batches are `(views, labels)`, evaluation batches `(images, labels)`. The validation
    loaders are the bank and the held-out images, in this order. The order of the images and all
    random numbers of a training step follow from `seed`, the epoch, the batch and the process, so
    that a run that is resumed after an epoch gives the weights of one that was not interrupted.

    Args:
        batch_size: images a step and process.
        num_workers: processes that load images.
        train_images: how many of the training images are used, drawn once and for all; None for
            all of them.
        bank_images: how many training images the kNN vote during training chooses from.
        views: how the views of a training image are drawn.

    Raises:
        ValueError: if a number is out of range.
    """

    train_count: int
    image_size: int
    normalization: Normalization = IMAGENET
    seed: int = 0

    def __init__(
        self,
        batch_size: int = 256,
        num_workers: int = 0,
        train_images: int | None = None,
        bank_images: int = 10_000,
        views: ViewSettings = _VIEWS,
    ) -> None:
        super().__init__()
        check_at_least("batch_size", batch_size, 1)
        check("data.num_workers", Workers, num_workers)
        check_at_least("train_images", train_images, 1)
        check_at_least("bank_images", bank_images, 1)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_images = train_images
        self.bank_images = bank_images
        self.views = views

    @property
    def held_out_name(self) -> str:
        """What the held-out images are, in a few words; other images have another name."""
        return f"held-out images of {type(self).__name__}"

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes of the labels; 0 where there are no labels. Known before `setup`."""

    @abstractmethod
    def evaluation_loaders(self, bank_images: int | None = None) -> list[DataLoader[Any]]:
        """Loaders of training images and of held-out ones, neither augmented nor shuffled.

        Args:
            bank_images: how many of the training images; None for all.
        """

    def train_labels(self) -> Tensor:
        """The labels of the training images that are used, (n,), once `setup` has been called.

        Raises:
            ValueError: where there are none.
        """
        raise ValueError(f"data must have labels, {type(self).__name__} has none")

    def crop_batches(self, chosen: Tensor, generator: torch.Generator) -> Iterable[Any]:
        """One epoch of training images as a linear evaluation sees them: cropped and mirrored.

        Args:
            chosen: indices into the used training images.
            generator: of their order.

        Returns:
            Batches of (images, labels), ready for the backbone; a random crop of each image at
            random, with random numbers of the global generator.

        Raises:
            ValueError: where there are no labels.
        """
        raise ValueError(f"data must have labels, {type(self).__name__} has none")

    @override
    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The bank and the held-out images."""
        return self.evaluation_loaders(self.bank_images)

    def evaluation_batches(self) -> tuple[Iterable[Any], Iterable[Any]]:
        """Training images and held-out ones as `(images, labels)`, ready for the backbone.

        Returns:
            Two iterables with a length, of all training images that are used and of the held-out
            ones; the same twice where there are no held-out ones.
        """
        train, held_out = self.evaluation_loaders()
        return _Prepared(self, train), _Prepared(self, held_out)

    def random_steps(self) -> dict[str, dict[str, Any]]:
        """The random steps of the views that are on.

        Returns:
            From a step's name to the arguments of this module that switch it off.
        """
        return {name: {"views": off} for name, off in self.views.random_steps().items()}

    def training_images(self, count: int) -> Iterable[Any]:
        """The first training images as they are, after `setup`.

        Args:
            count: how many at most.
        """
        loader = self.evaluation_loaders(count)[0]
        return itertools.islice((x for batch in loader for x in batch[0]), count)

    def _chosen(self, count: int) -> list[int]:
        """Which of the training images are used: the same ones for every seed."""
        if self.train_images is None:
            return list(range(count))
        if self.train_images > count:
            raise ValueError(
                f"data.train_images must be at most the number of training images, {count}, "
                f"got {self.train_images}"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return sorted(order[: self.train_images].tolist())

    def _views(self) -> tuple[ViewSettings, int]:
        method: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return self.views, method.global_views

    def _train_loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        trainer: Any = self.trainer
        return _EpochLoader(
            dataset,
            self.seed,
            lambda: trainer.fit_loop.epoch_progress.current.processed,
            batch_size=self.batch_size,
            # The sampler adds seed and epoch, which gives neighbouring seeds the same orders.
            sampler=DistributedSampler(
                dataset,
                trainer.world_size,
                trainer.global_rank,
                seed=_mixed(self.seed),
                drop_last=True,
            ),
            drop_last=True,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )

    def _plain_loader(self, dataset: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset, batch_size=self.batch_size, num_workers=self.num_workers, **kwargs
        )

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed everything that a training step draws, in views and model alike."""
        trainer: Any = self.trainer
        if trainer is not None and trainer.training:
            loop = trainer.fit_loop
            words = (
                loop.epoch_progress.current.processed,
                loop.epoch_loop.batch_progress.current.ready,
                trainer.global_rank,
            )
            seed = _mixed(self.seed, *words)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  Lightly draws from the global generator
            torch.manual_seed(seed)
        return batch
