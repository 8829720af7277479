"""The demo's encoder and its six objectives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.orthogonality import PenaltyKind
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.loss import DirectCLRLoss, LDRegularizer, OrthogonalityRegularizer
from lightly_collapse.models import DirectCLRHead
from lightly_collapse.pretrain.demo.views import BatchedViews

WIDTH = 128
"""Dimensions of the representation."""


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides the demo's numbers.

    Attributes:
        epochs: passes over the 1,257 training images.
        seed: seed of the initial weights, the order of the images and the views; the same for
            every method.
        batch_size: images a step; two views of each are made.
        learning_rate: of AdamW, with a cosine schedule to zero.
        temperature: of the contrastive losses.
        so_weight: gamma of soft orthogonality.
        srip_weight: gamma of the spectral restricted isometry property.
        ldreg_weight: beta of LDReg.
        ldreg_k: neighbours of LDReg.
        lid_k: neighbours of the measured mLID.
        directclr_dim: entries of the representation that DirectCLR's loss acts on.
        collapse_rtol: a dimension counts as collapsed when its singular value is below this share
            of the largest.
    """

    epochs: int = 20
    seed: int = 0
    batch_size: int = 256
    learning_rate: float = 2e-3
    temperature: float = 0.2
    so_weight: float = 1e-2
    srip_weight: float = 1.0
    ldreg_weight: float = 0.5
    ldreg_k: int = 32
    directclr_dim: int = 16
    collapse_rtol: float = DEFAULT_RTOL
    lid_k: int = DEFAULT_LID_K


class DigitEncoder(nn.Sequential):
    """Three residual blocks of torchvision, 32, 64 and 128 wide, and average pooling.

    Examples:
        >>> DigitEncoder()(torch.rand(4, 1, 16, 16)).shape
        torch.Size([4, 128])
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            _halving_block(32, 32),
            _halving_block(32, 64),
            _halving_block(64, WIDTH),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def last_convolution(self) -> str:
        """The name of the weight of the last convolution on the main path."""
        return [f"{name}.weight" for name, _ in self.named_modules() if name.endswith("conv2")][-1]


def _halving_block(inputs: int, outputs: int) -> nn.Module:
    shortcut = nn.Sequential(conv1x1(inputs, outputs, stride=2), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)


_Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Method:
    """A projector, a loss on two views' embeddings, and a penalty on encoder and features."""

    title: str
    head: Callable[[DemoSettings], nn.Module]
    loss: Callable[[DemoSettings], _Loss]
    penalty: Callable[[DemoSettings, nn.Module], _Loss] | None = None


def _projector(_: DemoSettings) -> nn.Module:
    return SimCLRProjectionHead(WIDTH, WIDTH, WIDTH)


def _nt_xent(settings: DemoSettings) -> _Loss:
    return NTXentLoss(temperature=settings.temperature)


def _orthogonality(kind: PenaltyKind, weight: float, encoder: nn.Module) -> _Loss:
    regularizer = OrthogonalityRegularizer(encoder, kind=kind, weight=weight)
    return lambda *_: regularizer()


METHODS: dict[str, _Method] = {
    "baseline": _Method("SimCLR", _projector, _nt_xent),
    "so": _Method(
        "SimCLR + SO",
        _projector,
        _nt_xent,
        lambda settings, encoder: _orthogonality("so", settings.so_weight, encoder),
    ),
    "srip": _Method(
        "SimCLR + SRIP",
        _projector,
        _nt_xent,
        lambda settings, encoder: _orthogonality("srip", settings.srip_weight, encoder),
    ),
    "ldreg": _Method(
        "SimCLR + LDReg",
        _projector,
        _nt_xent,
        lambda settings, _: LDRegularizer(settings.ldreg_weight, k=settings.ldreg_k),
    ),
    "directclr": _Method(
        "DirectCLR",
        lambda settings: DirectCLRHead(settings.directclr_dim),
        lambda settings: DirectCLRLoss(settings.directclr_dim, settings.temperature),
    ),
    "no-projector": _Method("SimCLR without projector", lambda _: nn.Identity(), _nt_xent),
}
"""The demo's methods by their names on the command line."""


@dataclass(frozen=True)
class TrainedModel:
    """An encoder with the head it was trained with, and the mean loss of every epoch."""

    encoder: DigitEncoder
    head: nn.Module
    losses: list[float]


def train(
    method: str,
    settings: DemoSettings,
    images: Tensor,
    on_step: Callable[[float], None],
    on_epoch: Callable[[DigitEncoder], None] | None = None,
) -> TrainedModel:
    """Train the encoder by one method.

    Args:
        method: a name out of `METHODS`.
        settings: the hyperparameters.
        images: (n, 1, height, width) training images in [0, 1].
        on_step: called after every step with the step's loss.
        on_epoch: called with the encoder before training and after every epoch.

    Returns:
        The trained model in evaluation mode.

    Raises:
        ValueError: if there are fewer images than a batch takes, or the loss is no longer finite.

    Examples:
        >>> settings = DemoSettings(epochs=1, batch_size=64)
        >>> model = train("baseline", settings, torch.rand(128, 1, 16, 16), on_step=lambda _: None)
        >>> len(model.losses)
        1
    """
    if len(images) < settings.batch_size:
        raise ValueError(
            f"images must hold a batch of {settings.batch_size} at least, got {len(images)}"
        )
    parts = METHODS[method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = DigitEncoder()
        head = parts.head(settings)
    loss_fn = parts.loss(settings)
    penalty = parts.penalty(settings, encoder) if parts.penalty else None
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    steps = settings.epochs * steps_per_epoch(settings, len(images))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    views = BatchedViews(seed=settings.seed)
    shuffle = torch.Generator().manual_seed(settings.seed)
    losses = []
    if on_epoch is not None:
        on_epoch(encoder)
    for epoch in range(settings.epochs):
        total = 0.0
        for batch in _batches(images, settings.batch_size, shuffle):
            features = encoder(torch.cat([views(batch), views(batch)]))
            loss = loss_fn(*head(features).chunk(2))
            if penalty is not None:
                loss = loss + penalty(*features.chunk(2))
            if not loss.isfinite():
                raise ValueError(f"the loss of {method} is {loss.item()} in epoch {epoch + 1}")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
            total += loss.item()
            on_step(loss.item())
        losses.append(total / steps_per_epoch(settings, len(images)))
        if on_epoch is not None:
            on_epoch(encoder)
    return TrainedModel(encoder.eval(), head.eval(), losses)


def steps_per_epoch(settings: DemoSettings, images: int) -> int:
    """Steps an epoch takes; an incomplete last batch is dropped."""
    return images // settings.batch_size


def _batches(images: Tensor, batch_size: int, shuffle: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(len(images), generator=shuffle)
    for start in range(0, len(images) - batch_size + 1, batch_size):
        yield images[order[start : start + batch_size]]
