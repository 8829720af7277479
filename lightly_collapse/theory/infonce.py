"""InfoNCE of a small network on Gaussian data, trained with its closed-form gradient.

Both experiments of `linear_dynamics` and the finite-time prediction stand on this loop. All seeds
train at once, as one batch of small matrices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 100  # steps whose noise is drawn at once: few calls, a few MB
_START = 20  # batches that measure the growth matrix before the first step


@dataclass(frozen=True)
class Settings:
    """How the network is trained; plain SGD, no momentum."""

    temperature: float
    learning_rate: float
    batch_size: int
    steps: int
    record_every: int
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("steps", "record_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True)
class Views:
    """Data of R runs and the Gaussian noise that makes their views.

    Attributes:
        samples: clean data, shape (R, n, D).
        noise: root of the augmentation covariance, shape (k, D), or (R, k, D) for one a run: a
            view is x + e `noise` with e standard normal of dimension k.
        generators: one for each run, so that a run depends on its own seed alone.
    """

    samples: Tensor
    noise: Tensor
    generators: Sequence[torch.Generator]

    def noises(self, count: int, batch_size: int) -> Tensor:
        """Fresh augmentations, shape (count, 2, R, batch_size, D)."""
        shape = (count, 2, batch_size, self.noise.shape[-2])
        drawn = [torch.randn(shape, generator=g) for g in self.generators]
        return torch.stack(drawn, dim=2) @ self.noise


@dataclass
class Network:
    """R networks: layers of shape (R, out, in), a bias of shape (R, 1, out) or none.

    They are linear, or have a ReLU after every layer but the last.
    """

    layers: list[Tensor]
    bias: Tensor | None = None
    relu: bool = False

    def product(self) -> Tensor:
        """The layers multiplied up, shape (R, out, in)."""
        result = self.layers[0]
        for layer in self.layers[1:]:
            result = layer @ result
        return result

    def gradient(self, total: Tensor) -> list[Tensor]:
        """Gradients by layer from that of the product, shape (R, out, in)."""
        gradients = []
        for k in range(len(self.layers)):
            gradient = total
            for later in reversed(self.layers[k + 1 :]):
                gradient = later.mT @ gradient
            for earlier in self.layers[:k]:
                gradient = gradient @ earlier.mT
            gradients.append(gradient)
        return gradients

    def activations(self, x: Tensor) -> list[Tensor]:
        """The input (R, n, in), what every layer but the last gives after its ReLU, and z."""
        found = [x]
        for k, layer in enumerate(self.layers):
            output = found[-1] @ layer.mT
            last = k == len(self.layers) - 1
            found.append(output if last or not self.relu else output.clamp(min=0))
        return found

    def backward(self, activations: list[Tensor], error: Tensor) -> list[Tensor]:
        """Gradients by layer from that of z, shape (R, n, out)."""
        gradients = []
        for k in range(len(self.layers) - 1, -1, -1):
            gradients.append(error.mT @ activations[k])
            error = error @ self.layers[k]
            if k > 0 and self.relu:
                error = error * (activations[k] > 0)
        return gradients[::-1]


@dataclass(frozen=True)
class Record:
    """The network at one moment.

    Attributes:
        step: number of SGD steps taken.
        layers: copies of the layers, each of shape (R, out, in).
        growth: X with -dL/dW = W X, mean over the steps since the last record; (R, D, D). Zero for
            a network with ReLUs, which has no such matrix.
    """

    step: int
    layers: list[Tensor]
    growth: Tensor


def train(
    network: Network,
    views: Views,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Train by SGD on InfoNCE with unnormalised features and the other view's negatives.

    L = mean_i -log softmax_j(z_i . z'_j / temperature) at j = i, as in the toy code of DirectCLR.
    The network is changed in place.

    Args:
        network: where to start.
        views: the data.
        settings: how to train.
        progress: called with (steps done, steps) at every record.

    Returns:
        The records; the first is the start, its growth matrix averaged over batches of its own.

    Raises:
        ValueError: if the batch is larger than the data or training diverges.
    """
    n, rate = settings.batch_size, settings.learning_rate
    if n > views.samples.shape[1]:
        raise ValueError(
            f"batch_size must not exceed the number of samples {views.samples.shape[1]}, got {n}"
        )
    diagonal = torch.eye(n)
    runs = torch.arange(len(views.samples))[:, None]
    nothing = torch.zeros(len(views.samples), *2 * views.samples.shape[2:])
    batches = _batches(views, n)

    def step(noise: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Gradients by layer and of the bias, and X, on one batch."""
        x = views.samples[runs, next(batches)]
        x0, x1 = x + noise[0], x + noise[1]
        if network.relu:
            h0, h1 = network.activations(x0), network.activations(x1)
            z0, z1 = h0[-1], h1[-1]
        else:
            weight = network.product()
            z0, z1 = x0 @ weight.mT, x1 @ weight.mT
        if network.bias is not None:
            z0, z1 = z0 + network.bias, z1 + network.bias
        error = torch.softmax(z0 @ z1.mT / settings.temperature, dim=-1) - diagonal
        error /= n * settings.temperature
        d0, d1 = error @ z1, error.mT @ z0
        bias_gradient = (d0 + d1).sum(1, keepdim=True)
        if network.relu:
            both = zip(network.backward(h0, d0), network.backward(h1, d1), strict=True)
            return [first + second for first, second in both], bias_gradient, nothing
        half = x1.mT @ (error.mT @ x0)
        return network.gradient(d0.mT @ x0 + d1.mT @ x1), bias_gradient, -half - half.mT

    start = [step(noise)[2] for noise in views.noises(_START, n)]
    records = [_record(0, network, start)]
    growth: list[Tensor] = []
    for done in range(1, settings.steps + 1):
        if (done - 1) % _CHUNK == 0:
            noises = views.noises(min(_CHUNK, settings.steps - done + 1), n)
        gradients, bias_gradient, matrix = step(noises[(done - 1) % _CHUNK])
        growth.append(matrix)
        for layer, gradient in zip(network.layers, gradients, strict=True):
            layer.mul_(1 - 2 * rate * settings.weight_decay).sub_(gradient, alpha=rate)
        if network.bias is not None:
            network.bias.sub_(bias_gradient, alpha=rate)
        if done % settings.record_every == 0 or done == settings.steps:
            if not all(layer.isfinite().all() for layer in network.layers):
                raise ValueError(
                    f"learning_rate must be lower: training diverged by step {done}, got {rate}"
                )
            records.append(_record(done, network, growth))
            growth = []
            if progress is not None:
                progress(done, settings.steps)
    return records


def _record(step: int, network: Network, growth: list[Tensor]) -> Record:
    return Record(step, [w.clone() for w in network.layers], torch.stack(growth).mean(0))


def _batches(views: Views, batch_size: int) -> Iterator[Tensor]:
    """Row numbers, shape (R, batch_size), every sample once an epoch, the last few left out."""
    count = views.samples.shape[1]
    while True:
        order = torch.stack([torch.randperm(count, generator=g) for g in views.generators])
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[:, start : start + batch_size]
