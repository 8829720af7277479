"""Images to pretrain on, and the random views that a training step sees of them."""

from lightly_collapse.pretrain.data.datasets import (
    CIFAR10,
    CIFAR100,
    Digits,
    ImageFolder,
    SmallImageFolder,
)
from lightly_collapse.pretrain.data.lightly_folder import LightlyFolder

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageFolder", "LightlyFolder", "SmallImageFolder"]
