"""Training examples: which image, and whether mirrored, depend on their number alone."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from detection.average_precision import decode_mask
from detection.photographs import Photograph, load_pixels
from detection.torchvision.config import Config

Example = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def load_image(photograph: Photograph) -> Tensor:
    """A photograph as float32 in 0..1, (3, height, width).

    Raises:
        ValueError: naming the file, if it cannot be decoded.
    """
    pixels = load_pixels(photograph.path, (photograph.width, photograph.height))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


class Examples(Dataset[Example]):
    """The n-th training example, for any n.

    Args:
        photographs: the training set.
        classes: in the order of the detector's outputs.
        flip: mirror every second image at random.
        seed: of order and mirroring.
        with_masks: whether the targets hold masks.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        classes: Sequence[str],
        flip: bool,
        seed: int,
        with_masks: bool = False,
    ) -> None:
        self.photographs = photographs
        self.classes = classes
        self.flip = flip
        self.seed = seed
        self.with_masks = with_masks
        self._order: tuple[int, list[int]] = (-1, [])

    @override
    def __getitem__(self, n: int) -> Example:
        epoch, place = divmod(n, len(self.photographs))
        if self._order[0] != epoch:
            all_places = range(len(self.photographs))
            order = random.Random(f"order {self.seed} {epoch}").sample(all_places, len(all_places))
            self._order = (epoch, order)
        photograph = self.photographs[self._order[1][place]]
        image = load_image(photograph)
        trained = [box for box in photograph.boxes if not box.is_crowd]
        boxes = torch.tensor([box.corners for box in trained], dtype=torch.float32).reshape(-1, 4)
        target = {
            "boxes": boxes,
            # Class 0 is torchvision's background.
            "labels": torch.tensor(
                [1 + self.classes.index(box.name) for box in trained], dtype=torch.int64
            ),
        }
        if self.with_masks:
            height, width = photograph.height, photograph.width
            masks = [torch.from_numpy(decode_mask(b.mask, height, width)) for b in trained]
            target["masks"] = (
                torch.stack(masks).to(torch.uint8)
                if masks
                else torch.zeros(0, height, width, dtype=torch.uint8)
            )
        if self.flip and random.Random(f"flip {self.seed} {n}").random() < 0.5:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, ::2] = image.shape[-1] - boxes[:, ::2]
            target["boxes"] = boxes
            if self.with_masks:
                target["masks"] = target["masks"].flip(-1)
        return image, target


def trained_photographs(photographs: Sequence[Photograph], config: Config) -> list[Photograph]:
    """Those with a box to learn from, or all where the configuration keeps empty ones.

    Raises:
        ValueError: if none is left.
    """
    if not config["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"]:
        return list(photographs)
    kept = [p for p in photographs if any(not box.is_crowd for box in p.boxes)]
    if not kept:
        raise ValueError("training set: no image with a box to learn from")
    return kept


def batches(examples: Examples, config: Config, first: int, last: int) -> Iterator[Batch]:
    """The batches of iterations `first` to `last`."""
    size = config["SOLVER"]["IMS_PER_BATCH"]
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_size=size,
        sampler=range(first * size, last * size),
        num_workers=config["DATALOADER"]["NUM_WORKERS"],
        collate_fn=_collate,
    )
    return iter(loader)


def _collate(examples: list[Example]) -> Batch:
    return [image for image, _ in examples], [target for _, target in examples]
