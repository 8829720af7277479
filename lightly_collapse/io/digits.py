"""Scikit-learn's handwritten digits: real scans that need no download."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lightly_collapse.io.memory import require_memory


@dataclass(frozen=True)
class DigitsSplit:
    """A stratified split of the 1,797 scans.

    Attributes:
        train_images: (n, 1, size, size) float32 in [0, 1].
        train_labels: (n,) int64 in 0 .. 9.
        test_images: (m, 1, size, size) float32 in [0, 1].
        test_labels: (m,) int64 in 0 .. 9.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits_split(size: int = 16, test_share: float = 0.3, seed: int = 0) -> DigitsSplit:
    """Load the digits, resize them bilinearly from 8 x 8 pixels and split them by class.

    Args:
        size: height and width of the images, in pixels.
        test_share: share of the images that is held out.
        seed: seed of the split.

    Returns:
        The split.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
    Repository, 1998, as shipped with scikit-learn.

    Examples:
        >>> split = digits_split(size=16)
        >>> split.train_images.shape, split.test_images.shape
        (torch.Size([1257, 1, 16, 16]), torch.Size([540, 1, 16, 16]))
    """
    images, labels = digit_scans(size)
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=test_share, stratify=labels, random_state=seed
    )
    return DigitsSplit(images[train], labels[train], images[test], labels[test])


def digit_scans(size: int) -> tuple[Tensor, Tensor]:
    """All digits, resized bilinearly from 8 x 8 pixels, and their labels.

    Args:
        size: height and width of the images, in pixels.

    Returns:
        (1797, 1, size, size) float32 in [0, 1], and (1797,) int64 in 0 .. 9.

    Raises:
        ValueError: if the machine has too little memory for them.
    """
    digits = load_digits()
    require_memory(2 * 4 * len(digits.target) * size**2, f"the digits in {size} x {size} pixels")
    # Grey levels are counts of set pixels in 4 x 4 blocks, 0 to 16.
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(
        images, size=(size, size), mode="bilinear", align_corners=False
    )
    return images, torch.from_numpy(digits.target).long()


def digit_colours(images: Tensor) -> Tensor:
    """Grey images as bytes in three equal channels, as pretraining has them.

    Args:
        images: (n, 1, height, width) in [0, 1].

    Returns:
        (n, 3, height, width) uint8.
    """
    return (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
