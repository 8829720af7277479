"""How far the landscape holds for a network with one ReLU layer: measured, not derived.

z = U h, h = relu(W x + b). Given h the network is linear: where the spectral contrastive loss is
least in U, the embedding has the spectrum of the landscape of h, in closed form. The theory does
not say what h becomes while W is trained, and the landscape of the pixels knows no ReLU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightly_collapse.theory.against_training import digit_pixels
from lightly_collapse.theory.landscape import QuarticLandscape

_VIEWS = 16  # of each image, for the moments of the hidden layer


@dataclass(frozen=True)
class ReluComparison:
    """Predictions and trainings at one strength of noise.

    All are eigenvalues of E z z'^T, z and z' two views of an image, descending, (d,), float64.

    Attributes:
        noise: standard deviation of the augmentation.
        from_pixels: predicted by the landscape of the pixels, which takes the network for linear.
        from_start: predicted by the landscape of the hidden layer with random weights.
        from_end: predicted by the landscape of the hidden layer after training.
        last_layer: of a network of which U alone was trained.
        trained: of a network all of which was trained.
    """

    noise: float
    from_pixels: Tensor
    from_start: Tensor
    from_end: Tensor
    last_layer: Tensor
    trained: Tensor


def spectrum_error(predicted: Tensor, found: Tensor) -> float:
    """Sum of |predicted - found| over the sum of `found`.

    Args:
        predicted: (d,) eigenvalues.
        found: (d,) eigenvalues, in the same order.

    Examples:
        >>> round(spectrum_error(torch.tensor([1.0, 0.4]), torch.tensor([1.0, 0.6])), 3)
        0.125
    """
    return float((predicted - found).abs().sum() / found.sum())


def compare_relu_on_digits(
    strengths: Sequence[float] = (0.1, 0.3, 0.5, 1.0),
    *,
    hidden: int = 256,
    width: int = 32,
    steps: int = 4000,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ReluComparison]:
    """Predict and train networks with one ReLU layer on the handwritten digits.

    The loss is the spectral contrastive one, -2 E z.z' + E (z.w)^2, on fresh views, by Adam with a
    cosine; the augmentation is Gaussian noise on every pixel.

    Args:
        strengths: standard deviations of the noise; a pixel, between 0 and 1, has about 0.27.
        hidden: width of the hidden layer.
        width: d, of the embedding.
        steps: of Adam.
        batch_size: images a step.
        learning_rate: at the start.
        seed: of everything.
        progress: called with (networks trained, networks).

    Returns:
        One comparison for each strength.

    Examples:
        >>> found = compare_relu_on_digits([0.5], hidden=32, width=8, steps=20)
        >>> found[0].trained.shape
        torch.Size([8])
    """
    images = digit_pixels()
    found = []
    for number, strength in enumerate(strengths):
        noise = strength * torch.eye(images.shape[1])
        ends, hiddens = [], []
        for part, whole in enumerate((False, True)):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = _network(images.shape[1], hidden, width)
                if not whole:
                    hiddens.append(_moments(images, noise, network[:2]))
                _train(network, images, noise, steps, batch_size, learning_rate, whole)
                hiddens.append(_moments(images, noise, network[:2]))
            last = next(network[2].parameters()).detach().double()
            ends.append(_eigenvalues(last @ hiddens[-1][0] @ last.T))
            if progress is not None:
                progress(2 * number + part + 1, 2 * len(strengths))
        pixels = (torch.cov(images.T).double(), (noise.T @ noise).double())
        start, _, end = ((cross, second - cross) for cross, second in hiddens)
        predicted = (_predicted(*moments, width) for moments in (pixels, start, end))
        found.append(ReluComparison(strength, *predicted, *ends))
    return found


def _network(dimension: int, hidden: int, width: int) -> nn.Sequential:
    last = nn.Linear(hidden, width, bias=False)
    return nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU(), last)


def _train(
    network: nn.Sequential,
    images: Tensor,
    noise: Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    whole: bool,
) -> None:
    """Train all layers, or the last one alone."""
    network[0].requires_grad_(whole)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch_size,))]
        z, w = (network(x + torch.randn(batch_size, len(noise)) @ noise) for _ in range(2))
        own = (z * w).sum(dim=1)
        pairs = ((z @ w.T).square().sum() - own.square().sum()) / (batch_size * (batch_size - 1))
        loss = pairs - 2 * own.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _moments(images: Tensor, noise: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """E h h'^T of two views of an image and E h h^T of one, both (hidden, hidden), float64."""
    count, size = _VIEWS, len(images)
    together, second = torch.zeros(()), torch.zeros(())
    for _ in range(count):
        h = layer(images + torch.randn(size, len(noise)) @ noise).double()
        together, second = together + h, second + h.T @ h / (size * count)
    cross = (together.T @ together / (size * count) - second) / (count - 1)
    return (cross + cross.T) / 2, second


def _predicted(data: Tensor, augmentation: Tensor, width: int) -> Tensor:
    landscape = QuarticLandscape.from_covariances(data, augmentation)
    # The spectral contrastive loss is 4 L at W / sqrt(2).
    return 2 * landscape.clean_spectrum(width, data).square()


def _eigenvalues(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.flip(0).clamp(min=0)
