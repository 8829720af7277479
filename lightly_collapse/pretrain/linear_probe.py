"""Linear evaluation as published: a linear layer trained for epochs on a frozen backbone."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightly_collapse.pretrain.lars import LARS

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""From an epoch, counted from 0, to its batches of (n, d) representations and (n,) labels."""


@dataclass(frozen=True)
class LinearProtocol:
    """How a linear layer is trained on a frozen representation.

    The learning rate falls on a cosine, epoch by epoch; weights start from N(0, 0.01^2), biases
    from zero.

    Attributes:
        optimizer: `lars` or `sgd`.
        learning_rate: of a batch of 256; it is scaled by the batch over 256.
        epochs: how many.
        batch_size: images a step.
        weight_decay: on weights and biases with SGD, on weights with LARS.
        min_lr_factor: learning rate at the end, as a share of that at the start.
        normalize: standardise every feature by a BatchNorm without weights before the layer.
        momentum: of either optimizer.
        source: where it is published.

    Raises:
        ValueError: if a number is out of range.
    """

    optimizer: Literal["lars", "sgd"]
    learning_rate: float
    epochs: int
    batch_size: int
    weight_decay: float = 0.0
    min_lr_factor: float = 0.0
    normalize: bool = False
    momentum: float = 0.9
    source: str = ""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: counted from 0.

        Examples:
            >>> [round(PROTOCOLS["lars"].rate(epoch), 4) for epoch in (0, 45, 89)]
            [0.4, 0.2, 0.0001]
        """
        start = self.learning_rate * self.batch_size / 256
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return start * (self.min_lr_factor + (1 - self.min_lr_factor) * cosine)


PROTOCOLS: Mapping[str, LinearProtocol] = {
    "lars": LinearProtocol(
        *("lars", 0.1, 90, 1024),
        min_lr_factor=1e-6,
        normalize=True,
        source="LDReg, table 9; its code, configs/simclr/in1k/rn50_bs2048_e100/linear_prob.yaml",
    ),
    "sgd": LinearProtocol(
        *("sgd", 0.1, 100, 256),
        weight_decay=1e-6,
        source="DirectCLR's code, directclr/linear_probe.py",
    ),
}
"""The published protocols by name."""


def train_linear(
    batches: Batches,
    dimensions: int,
    classes: int,
    protocol: LinearProtocol,
    device: torch.device | None = None,
) -> nn.Module:
    """Train a linear layer on frozen representations.

    Args:
        batches: the representations of every epoch.
        dimensions: d, their width.
        classes: number of classes.
        protocol: how it is trained.
        device: where to; by default the CPU.

    Returns:
        A module from (n, d) representations to (n, classes) scores, in evaluation mode. Random
        numbers come from the global generator.

    Raises:
        ValueError: if the loss is no longer finite.

    Examples:
        >>> x, y = torch.eye(2).repeat(8, 1), torch.arange(2).repeat(8)
        >>> protocol = LinearProtocol("sgd", 1.0, epochs=5, batch_size=16)
        >>> layer = train_linear(lambda epoch: [(x, y)], 2, 2, protocol)
        >>> top_accuracy(layer(x), y, 1)
        1.0
    """
    linear = nn.Linear(dimensions, classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    norm = [nn.BatchNorm1d(dimensions, affine=False)] if protocol.normalize else []
    layer = nn.Sequential(*norm, linear).to(device)
    optimizer = _optimizer(linear, protocol)
    for epoch in range(protocol.epochs):
        for group in optimizer.param_groups:
            group["lr"] = protocol.rate(epoch)
        total = torch.zeros((), device=device)
        for features, labels in batches(epoch):
            # BatchNorm cannot standardise one row, which the end of an epoch may be.
            if protocol.normalize and len(features) < 2:
                continue
            loss = cross_entropy(layer(features.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
        if not math.isfinite(total):
            raise ValueError(
                f"the linear probe's loss is {float(total)} in epoch {epoch}: are the "
                "representations finite?"
            )
    return layer.eval()


def _optimizer(linear: nn.Linear, protocol: LinearProtocol) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(
            linear.parameters(),
            lr=protocol.rate(0),
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        )
    groups = [
        {"params": [linear.weight], "weight_decay": protocol.weight_decay, "adapt": True},
        {"params": [linear.bias], "weight_decay": 0.0},
    ]
    return LARS(groups, protocol.rate(0), momentum=protocol.momentum)


def top_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """The share of rows whose label is among the k classes of highest score.

    Args:
        scores: (n, classes).
        labels: (n,) classes.
        k: how many; all classes where there are fewer.

    Returns:
        In [0, 1].

    Examples:
        >>> scores = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
        >>> [top_accuracy(scores, torch.tensor([1, 0]), k) for k in (1, 2)]
        [0.5, 1.0]
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(dim=1).float().mean())


def labelled_share(labels: Tensor, share: float, seed: int = 0) -> Tensor:
    """Which images keep their labels: the same share of every class, at least one of each.

    Args:
        labels: (n,) classes.
        share: in (0, 1], such as 0.01 and 0.1 of the semi-supervised protocols.
        seed: of the draw.

    Returns:
        (m,) indices, ascending.

    Raises:
        ValueError: if `share` is not in (0, 1].

    Examples:
        >>> labelled_share(torch.tensor([0] * 10 + [1] * 20), 0.1).numel()
        3
    """
    if not 0 < share <= 1:
        raise ValueError(f"labels must be a share in (0, 1], got {share}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in torch.unique(labels).tolist():
        own = (labels == label).nonzero()[:, 0]
        count = max(1, round(share * len(own)))
        chosen.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(chosen).sort().values
