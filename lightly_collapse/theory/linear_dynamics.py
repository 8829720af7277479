"""How a linear network collapses as it trains: two experiments, and their closed forms.

Jing, Vincent, LeCun and Tian, "Understanding dimensional collapse in contrastive self-supervised
learning" (ICLR 2022): section 4 (strong augmentation, one layer), section 5 (implicit
regularization, two layers) and appendix C (more layers, ReLUs between them). The default settings
are those of the official toy code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.theory._check import covariance_root
from lightly_collapse.theory.closed_forms import exponential_solution, saturating_singular_values
from lightly_collapse.theory.infonce import Network, Record, Settings, Views, train

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LinearDynamics:
    """A small network's training, recorded; R runs (seeds), T records, all float64.

    Attributes:
        steps: SGD steps taken at each record, shape (T,), from 0.
        time: steps times learning rate, shape (T,), the time of gradient flow.
        layers: weights over time, the first layer first, each of shape (T, R, out, in).
        singular_values: of each layer over time, each of shape (T, R, d), descending.
        spectrum: eigenvalues of the covariance of the clean data's embedding, (T, R, d),
            descending.
        growth: X with -dL/dW = W X for the whole network's W, averaged over the steps since the
            record before (at the start over batches of their own); shape (T, R, D, D).
            Directions where X is negative shrink. Zero with ReLUs.
        alignment: |V2^T U1| at the end, shape (R, d, d), V2 the right singular vectors of the
            last layer, U1 the left ones of the layer before; None for one layer. The identity
            where the layers are aligned.
        closed_form: the singular values of a layer that the theory gives from the start alone,
            shape (T, R, d). One layer: those of W(0) exp(X(0) t), which holds while the embedding
            is small and overflows to inf later. Two layers: `saturating_singular_values`, those
            of either layer. Shape (T, R, 0) for more layers or with ReLUs.
    """

    steps: Tensor
    time: Tensor
    layers: tuple[Tensor, ...]
    singular_values: tuple[Tensor, ...]
    spectrum: Tensor
    growth: Tensor
    alignment: Tensor | None
    closed_form: Tensor

    def collapsed(self, rtol: float = DEFAULT_RTOL) -> Tensor:
        """Number of collapsed dimensions of the embedding at the end, by run.

        Args:
            rtol: a dimension counts as collapsed when the centred singular value of the embedding,
                the root of the eigenvalue of its covariance, is below this times the largest.

        Returns:
            Integers, shape (R,).
        """
        final = self.spectrum[-1].clamp(min=0).sqrt()
        return (final < rtol * final[:, :1]).sum(1)


def strong_augmentation_dynamics(
    noise: float = 1.5,
    dimension: int = 16,
    noisy_dimensions: int = 8,
    *,
    data_covariance: Tensor | None = None,
    augmentation_covariance: Tensor | None = None,
    width: int | None = None,
    temperature: float = 0.1,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    steps: int = 10_000,
    samples: int = 10_000,
    spectrum_samples: int = 1000,
    bias: bool = True,
    record_every: int = 100,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    progress: Progress | None = None,
) -> LinearDynamics:
    """One linear layer, standard normal data, strong noise on the last coordinates.

    The embedding loses the augmented directions (section 4 of the paper).

    Args:
        noise: standard deviation of the augmentation on the noisy coordinates.
        dimension: D, dimension of the data.
        noisy_dimensions: how many of the last coordinates are augmented.
        data_covariance: of the clean data, shape (D, D), instead of the identity; the data stay
            Gaussian.
        augmentation_covariance: of the augmentation, shape (D, D), instead of `noise`.
        width: d, dimension of the embedding; D by default.
        temperature: of the softmax.
        learning_rate: of plain SGD.
        weight_decay: g in the term g |W|^2 added to the loss.
        batch_size: anchors in a step.
        steps: SGD steps.
        samples: size of the fixed data set.
        spectrum_samples: fresh clean samples on which the embedding covariance is measured; 0 for
            the exact population covariance.
        bias: whether the layer has a bias.
        record_every: steps between records.
        seeds: one run for each.
        progress: called with (steps done, steps) at every record.

    Returns:
        The recorded training.

    Raises:
        ValueError: if a setting is out of its range, a covariance is not symmetric and positive
            semi-definite, or training diverges.

    Examples:
        >>> run = strong_augmentation_dynamics(noise=2.0, steps=3000, seeds=[0])
        >>> clean, noisy = run.spectrum[-1, 0, :8].mean(), run.spectrum[-1, 0, 8:].mean()
        >>> bool(noisy < 0.2 * clean)
        True
    """
    if augmentation_covariance is None:
        if not 0 <= noisy_dimensions <= dimension:
            raise ValueError(f"noisy_dimensions must lie in 0..{dimension}, got {noisy_dimensions}")
        if not noise >= 0:
            raise ValueError(f"noise must not be negative, got {noise}")
        noise_root = noise * torch.eye(dimension)[dimension - noisy_dimensions :]
    else:
        noise_root = covariance_root(augmentation_covariance, "augmentation_covariance")
        dimension = noise_root.shape[1]
    settings = Settings(temperature, learning_rate, batch_size, steps, record_every, weight_decay)
    views = _views(data_covariance, dimension, noise_root, samples, seeds)
    width = dimension if width is None else width
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    bound = dimension**-0.5  # torch.nn.Linear's own start
    network = Network(
        layers=[_uniform(views, bound, (width, dimension))],
        bias=_uniform(views, bound, (1, width)) if bias else None,
    )
    evaluation = _evaluation_root(data_covariance, views, spectrum_samples)
    run = _dynamics(train(network, views, settings, progress), settings, evaluation)
    return replace(run, closed_form=exponential_solution(run.layers[0][0], run.growth[0], run.time))


def implicit_regularization_dynamics(
    noise: float = 1e-3,
    dimension: int = 16,
    *,
    decay: float = 0.35,
    layers: int = 2,
    relu: bool = False,
    temperature: float = 0.1,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    steps: int = 10_000,
    samples: int = 10_000,
    spectrum_samples: int = 1000,
    record_every: int = 100,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    progress: Progress | None = None,
) -> LinearDynamics:
    """Several layers, standard normal data, weak noise: small singular values lag for ever.

    All layers start with singular values exp(-decay k), k = 0..D-1, and singular vectors of a
    matrix of uniform entries (section 5 of the paper and its toy code, two linear layers; appendix
    C has more layers, and ReLUs between them).

    Args:
        noise: standard deviation of the augmentation, on every coordinate.
        dimension: D, of data, hidden layer and embedding.
        decay: how fast the initial singular values fall.
        layers: L, how many.
        relu: put a ReLU between adjacent layers.
        temperature: of the softmax.
        learning_rate: of plain SGD.
        weight_decay: g in the term g (|W1|^2 + ... + |WL|^2) added to the loss.
        batch_size: anchors in a step.
        steps: SGD steps.
        samples: size of the fixed data set.
        spectrum_samples: fresh clean samples on which the embedding covariance is measured; 0 for
            the exact population covariance, which is known without ReLUs only.
        record_every: steps between records.
        seeds: one run for each.
        progress: called with (steps done, steps) at every record.

    Returns:
        The recorded training.

    Raises:
        ValueError: if a setting is out of its range or training diverges.

    Examples:
        >>> run = implicit_regularization_dynamics(steps=2000, seeds=[0])
        >>> bool(run.spectrum[-1, 0, -1] < 1e-6 * run.spectrum[-1, 0, 0])
        True
    """
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    if not decay >= 0:
        raise ValueError(f"decay must not be negative, got {decay}")
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if relu and spectrum_samples == 0:
        raise ValueError("spectrum_samples must be at least 2 with ReLUs, got 0")
    settings = Settings(temperature, learning_rate, batch_size, steps, record_every, weight_decay)
    views = _views(None, dimension, noise * torch.eye(dimension), samples, seeds)
    values = torch.exp(-decay * torch.arange(dimension, dtype=torch.float64))
    start = []
    for _ in range(layers):
        uniform = _uniform(views, 0.5, (dimension, dimension)).double() + 0.5
        left, _, right = torch.linalg.svd(uniform)
        start.append((left * values @ right).float())
    network = Network(start, relu=relu)
    evaluation = (
        _drawn(views, spectrum_samples) if relu else _evaluation_root(None, views, spectrum_samples)
    )
    run = _dynamics(train(network, views, settings, progress), settings, evaluation, relu)
    if layers != 2 or relu:
        return replace(run, closed_form=torch.empty(*run.spectrum.shape[:2], 0))
    # The landscape of InfoNCE on data of variance 1 and augmentation of variance noise^2.
    growth = torch.tensor(2 / temperature * (1 - 1 / batch_size))
    ceiling = torch.tensor(temperature**0.5 / (1 + noise**2))
    first = run.singular_values[0][0]
    closed_form = saturating_singular_values(first, growth, ceiling, run.time[:, None, None])
    return replace(run, closed_form=closed_form)


def _views(
    covariance: Tensor | None, dimension: int, noise: Tensor, samples: int, seeds: Sequence[int]
) -> Views:
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    if not seeds:
        raise ValueError("seeds must name at least one run, got none")
    root = torch.eye(dimension)
    if covariance is not None:
        root = covariance_root(covariance, "data_covariance")
        if root.shape[1] != dimension:
            raise ValueError(
                f"data_covariance must have the augmentation's dimension {dimension}, "
                f"got {root.shape[1]}"
            )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = [torch.randn(samples, len(root), generator=g) for g in generators]
    return Views(torch.stack(drawn) @ root, noise, generators)


def _uniform(views: Views, bound: float, shape: tuple[int, ...]) -> Tensor:
    drawn = [torch.rand(shape, generator=g) for g in views.generators]
    return (2 * torch.stack(drawn) - 1) * bound


def _evaluation_root(covariance: Tensor | None, views: Views, samples: int) -> Tensor:
    """R of shape (runs, k, D) with R^T R the covariance on which the spectrum is measured."""
    dimension = views.samples.shape[2]
    if covariance is None:
        root = torch.eye(dimension, dtype=torch.float64)
    else:
        root = covariance_root(covariance, "data_covariance").double()
        root = torch.cat([root, root.new_zeros(dimension - len(root), dimension)])
    if samples == 0:
        return root.expand(len(views.generators), *root.shape)
    drawn = _drawn(views, samples, len(root))
    _, triangle = torch.linalg.qr(drawn - drawn.mean(1, keepdim=True))
    return triangle @ root / (samples - 1) ** 0.5


def _drawn(views: Views, samples: int, dimension: int | None = None) -> Tensor:
    """Fresh standard normal samples, shape (R, samples, dimension)."""
    if samples < 2:
        raise ValueError(f"spectrum_samples must be 0 or at least 2, got {samples}")
    width = views.samples.shape[2] if dimension is None else dimension
    return torch.stack(
        [torch.randn(samples, width, generator=g) for g in views.generators]
    ).double()


def _dynamics(
    records: list[Record], settings: Settings, evaluation: Tensor, relu: bool = False
) -> LinearDynamics:
    steps = torch.tensor([record.step for record in records])
    history = zip(*(record.layers for record in records), strict=True)
    layers = tuple(torch.stack(over_time).double() for over_time in history)
    alignment = None
    if len(layers) > 1:
        left, _, _ = torch.linalg.svd(layers[-2][-1])
        _, _, right = torch.linalg.svd(layers[-1][-1])
        alignment = (right @ left).abs()
    return LinearDynamics(
        steps=steps,
        time=steps.double() * settings.learning_rate,
        layers=layers,
        singular_values=tuple(torch.linalg.svdvals(layer) for layer in layers),
        spectrum=_sampled_spectrum(layers, evaluation)
        if relu
        else torch.linalg.svdvals(Network(list(layers)).product() @ evaluation.mT).square(),
        growth=torch.stack([record.growth for record in records]).double(),
        alignment=alignment,
        closed_form=torch.empty(0),
    )


def _sampled_spectrum(layers: Sequence[Tensor], samples: Tensor) -> Tensor:
    """Eigenvalues of the covariance of a network with ReLUs, (T, R, d), on (R, n, D) samples."""
    found = []
    for record in range(len(layers[0])):
        z = Network([layer[record] for layer in layers], relu=True).activations(samples)[-1]
        z = z - z.mean(1, keepdim=True)
        found.append(torch.linalg.svdvals(z).square() / (samples.shape[1] - 1))
    return torch.stack(found)
