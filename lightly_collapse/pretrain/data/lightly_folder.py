"""Images or videos of a folder without labels, through LightlyDataset."""

import os
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from torch.utils.data import DataLoader, Subset
from torchvision.datasets.folder import IMG_EXTENSIONS
from typing_extensions import override

from lightly_collapse.io.images import ReadableImages, open_rgb
from lightly_collapse.pretrain.data.augment import evaluation_view, worker_views
from lightly_collapse.pretrain.data.base import PretrainData, check_at_least
from lightly_collapse.pretrain.data.datasets import MIN_IMAGE_SIZE


class LightlyFolder(PretrainData):
    """Any folder of images or videos, without labels, through LightlyDataset.

    Training reports RankMe of the first images as they are; there is nothing to probe.

    Args:
        root: the folder; it is searched to any depth.
        names: text file with the images to use, one a line, relative to `root`, with or without
            ending, as the lists of VOC in ImageSets/Main; without it all images are used.
        image_size: height and width of a global view, in pixels.
        kwargs: see `PretrainData`.
    """

    num_classes = 0

    def __init__(
        self,
        root: str = "data",
        names: str | None = None,
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("image_size", image_size, MIN_IMAGE_SIZE)
        self.root, self.names, self.image_size = root, names, image_size

    @property
    @override
    def held_out_name(self) -> str:
        """The folder: all of its images are trained on."""
        named = "" if self.names is None else f" that {self.names} names"
        return f"training images in {os.path.abspath(self.root)}{named}"

    @override
    def setup(self, stage: str) -> None:
        """Find the images."""
        self._plain = self._dataset(evaluation_view(self.image_size, self.normalization))
        self._indices = self._chosen(len(self._plain))
        self.train_count = len(self._indices)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """The images, shuffled, as views."""
        settings, global_views = self._views()
        dataset = self._dataset(
            worker_views(
                settings,
                self.image_size,
                self.normalization.mean,
                self.normalization.std,
                global_views,
            )
        )
        return self._train_loader(ReadableImages(Subset(dataset, self._indices)))

    @override
    def evaluation_loaders(self, bank_images: int | None = None) -> list[DataLoader[Any]]:
        """The same images twice: there are no held-out ones."""
        loader = self._plain_loader(
            ReadableImages(Subset(self._plain, self._indices[:bank_images]))
        )
        return [loader, loader]

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Drop the file names, and the labels that folders would be."""
        images, labels, _ = batch
        return images, torch.zeros_like(labels)

    def _dataset(self, transform: Any) -> LightlyDataset:
        if not os.path.isdir(self.root):
            raise ValueError(f"data.root must be a folder of images, got {self.root}")
        chosen = None if self.names is None else _listed(Path(self.root), Path(self.names))
        try:
            dataset = LightlyDataset(self.root, transform=transform, filenames=chosen)
        except (RuntimeError, FileNotFoundError) as error:
            raise ValueError(f"data.root {self.root} must hold images: {error}") from error
        if hasattr(dataset.dataset, "loader"):  # of image files, not of videos
            dataset.dataset.loader = open_rgb
        if len(dataset) == 0:
            raise ValueError(f"data.root {self.root} must hold images, got none")
        return dataset


def _listed(root: Path, names: Path) -> list[str]:
    """The files below a folder that a list names, with or without their ending."""
    try:
        lines = names.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.names {names} must be a text file of names: {error}") from error
    found = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in IMG_EXTENSIONS:
            inside = path.relative_to(root)
            found[str(inside)] = found[str(inside.with_suffix(""))] = str(inside)
    wanted = [line.strip() for line in lines if line.strip()]
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"data.names {names}: {len(missing)} of {len(wanted)} names have no image in {root}, "
            f"the first is {missing[0]}"
        )
    return [found[name] for name in wanted]
