"""Images, networks, methods and optimizers of `auto_weight`."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1
from torchvision.models.vision_transformer import VisionTransformer

from lightly_collapse.io.digits import digits_split
from lightly_collapse.pretrain.data.augment import ViewSettings
from lightly_collapse.pretrain.data.datasets import SmallImageFolder
from lightly_collapse.pretrain.lars import LARS

SIZE = 16


class Images(NamedTuple):
    """Images (n, 3, SIZE, SIZE) in [0, 1] and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def load(data: str, cifar: str | None) -> Images:
    """The images of a data set, once a process."""
    if data == "digits":
        split = digits_split(SIZE)
        return Images(
            split.train_images.expand(-1, 3, -1, -1),
            split.train_labels,
            split.test_images.expand(-1, 3, -1, -1),
            split.test_labels,
        )
    assert cifar is not None
    cached = Path(cifar) / f"auto-weight-{SIZE}.pt"
    if not cached.exists():
        folder = SmallImageFolder(cifar, val="test", image_size=SIZE, train_images=10_000)
        (train, labels), (test, test_labels) = folder.load()
        torch.save([train, labels, test[::2].clone(), test_labels[::2].clone()], cached)
    train, labels, test, test_labels = torch.load(cached, weights_only=True)
    return Images(train.float() / 255, labels, test.float() / 255, test_labels)


def cnn(width: int = 16) -> nn.Module:
    """Three residual blocks; 4 * width features."""

    def block(inputs: int, outputs: int) -> nn.Module:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride=2), nn.BatchNorm2d(outputs))
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    encoder = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        block(width, width),
        block(width, 2 * width),
        block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return encoder.to(memory_format=torch.channels_last)


def vit(hidden: int = 64) -> nn.Module:
    """Three layers on 16 patches; the class token."""
    model = VisionTransformer(SIZE, 4, 3, 4, hidden, 2 * hidden)
    model.heads = nn.Identity()
    return model


class SimCLR(nn.Module):
    """NT-Xent behind a projector."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, SimCLRProjectionHead(width, width, width)
        self.criterion = NTXentLoss(temperature=0.2)

    def forward(self, x: Tensor, y: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The loss, and the representations of both views."""
        features = self.encoder(torch.cat([x, y]))
        return self.criterion(*self.head(features).chunk(2)), features


class VICReg(SimCLR):
    """VICReg."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__(encoder, width)
        self.head = VICRegProjectionHead(width, 4 * width, 4 * width)
        self.criterion = VICRegLoss()


class BarlowTwins(SimCLR):
    """Barlow Twins."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__(encoder, width)
        self.head = BarlowTwinsProjectionHead(width, 4 * width, 4 * width)
        self.criterion = BarlowTwinsLoss()


class BYOL(SimCLR):
    """BYOL, momentum from 0.97."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__(encoder, width)
        self.head = BYOLProjectionHead(width, 4 * width, width)
        self.predictor = BYOLPredictionHead(width, 4 * width, width)
        self.criterion = NegativeCosineSimilarity()
        self.target = deepcopy(nn.Sequential(self.encoder, self.head)).requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The loss, and the representations of both views."""
        online = nn.Sequential(self.encoder, self.head)
        update_momentum(online, self.target, m=cosine_schedule(int(progress * 1000), 1001, 0.97, 1))
        features = self.encoder(torch.cat([x, y]))
        p0, p1 = self.predictor(self.head(features)).chunk(2)
        with torch.no_grad():
            z0, z1 = self.target(torch.cat([x, y])).chunk(2)
        return 4 + 2 * (self.criterion(p0, z1) + self.criterion(p1, z0)), features


class Setting(NamedTuple):
    """One training: data, encoder, method, optimizer."""

    data: str
    encoder: Callable[[], nn.Module]
    method: type[SimCLR]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    steps: int
    batch: int = 128


_sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
_lars = partial(LARS, lr=1.0, momentum=0.9, weight_decay=1e-5, trust_coefficient=0.02)
_adamw = partial(torch.optim.AdamW, lr=2e-3, weight_decay=1e-4)
_adam = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-3)
_slow_sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)

CHOSEN_ON = {
    "digits SimCLR CNN AdamW": Setting("digits", cnn, SimCLR, _adamw, 150),
    "digits BYOL CNN SGD": Setting("digits", cnn, BYOL, _sgd, 150),
    "cifar VICReg CNN LARS": Setting("cifar", cnn, VICReg, _lars, 150),
    "cifar SimCLR ViT AdamW": Setting("cifar", vit, SimCLR, _adamw, 100, 96),
}
FRESH = {
    "digits BarlowTwins CNN AdamW": Setting(
        "digits", partial(cnn, 24), BarlowTwins, _adam, 150, 96
    ),
    "digits SimCLR CNN SGD": Setting("digits", partial(cnn, 12), SimCLR, _slow_sgd, 150),
    "cifar BYOL CNN AdamW": Setting("cifar", partial(cnn, 20), BYOL, _adam, 130, 96),
    "digits VICReg ViT AdamW": Setting("digits", partial(vit, 48), VICReg, _adam, 120, 96),
}
"""Settings that nothing was chosen on: other pairs of method, network and optimizer, a method
that was not used before, other widths, rates and lengths."""
SETTINGS = CHOSEN_ON | FRESH
VIEWS = {
    "digits": ViewSettings(min_scale=0.6, flip=0.0, jitter=0.5, gray=0.0, blur=(0.0, 0.0)),
    "cifar": ViewSettings(min_scale=0.2, jitter=0.5, blur=(0.0, 0.0)),
}
