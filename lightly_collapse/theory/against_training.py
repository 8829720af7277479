"""The prediction beside real training: a linear encoder on the handwritten digits.

Noise of growing strength is added on a random half of the directions of pixel space, as an
augmentation; the theory sees views of the images, the encoder is trained on others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lightly_collapse.theory._check import covariance_root
from lightly_collapse.theory.infonce import Network, Settings, Views, train
from lightly_collapse.theory.predict import CollapsePrediction, predict_collapse

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Standard deviations of the noise; a pixel of the digits, between 0 and 1, has about 0.27."""

_VIEWS = 128  # of each image for the prediction: weak directions drown in the noise of fewer


@dataclass(frozen=True)
class TrainingComparison:
    """Prediction and observation at one strength of noise; eigenvalues, descending, (D,).

    Attributes:
        noise: standard deviation of the augmentation.
        prediction: of `predict_collapse`.
        spectral: eigenvalues of the clean embedding's covariance after training a linear encoder
            with the spectral contrastive loss to convergence.
        infonce: the same after InfoNCE for a finite time; None where it was not trained.
        finite_time: the same, predicted by the linear dynamics run to the training time.
    """

    noise: float
    prediction: CollapsePrediction
    spectral: Tensor
    infonce: Tensor | None
    finite_time: Tensor | None

    @property
    def predicted(self) -> Tensor:
        """Predicted eigenvalues of the clean embedding's covariance, on the scale of `spectral`."""
        return 2 * self.prediction.spectrum.square()

    def largest_error(self) -> float:
        """Largest relative error of `predicted` against `spectral` above 1e-2 of the largest."""
        seen = self.spectral > 1e-2 * self.spectral[0]
        return float((self.predicted / self.spectral - 1)[seen].abs().max())

    def correlation(self, finite_time: bool = True) -> float:
        """Correlation of the log spectra, predicted and after InfoNCE.

        The prediction is that of the linear dynamics run to the training time. The landscape alone
        knows where training would end, and nothing of directions that are still on their way: its
        correlation is lower, most where there is almost no noise.

        Over the dimensions that the landscape keeps above 1e-3 of its largest singular value:
        lower ones drown in the sampling of the views.

        Args:
            finite_time: take the prediction with the training time in it; False for the
                landscape's alone.

        Raises:
            ValueError: if InfoNCE was not trained.
        """
        predicted = self.finite_time if finite_time else self.predicted
        if predicted is None or self.infonce is None:
            raise ValueError("correlation needs a comparison with InfoNCE trained, with steps > 0")
        kept = self.predicted > 1e-6 * self.predicted[0]
        pair = torch.stack([predicted[kept], self.infonce[kept]]).clamp(min=1e-30).log()
        return float(torch.corrcoef(pair)[0, 1])


def compare_on_digits(
    strengths: Sequence[float] = STRENGTHS,
    *,
    steps: int = 3000,
    learning_rate: float = 3e-3,
    temperature: float = 0.1,
    batch_size: int = 128,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[TrainingComparison]:
    """Prediction beside training on the digits, at each strength of noise.

    Args:
        strengths: standard deviations of the noise.
        steps: SGD steps of InfoNCE; 0 to leave it out.
        learning_rate: of InfoNCE's plain SGD.
        temperature: of InfoNCE.
        batch_size: of InfoNCE.
        weight_decay: g in the units of the landscape, for the spectral contrastive loss alone.
        seed: of everything.
        progress: called with (parts of the work done, parts).

    Returns:
        One comparison for each strength.
    """
    images = digit_pixels()
    directions = noise_directions(images.shape[1], seed)
    predictions, spectral = [], []
    count = len(strengths)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, 3 * count if steps else count)

    for number, strength in enumerate(strengths):
        noise = strength * directions
        predictions.append(predict(images, noise, weight_decay=weight_decay, seed=seed))
        weight = train_spectral_contrastive(
            images, noise, weight_decay=2 * weight_decay, seed=seed + 1
        )
        spectral.append(_embedding_eigenvalues(weight, images))
        report(number + 1)
    infonce: Sequence[Tensor | None] = [None] * len(strengths)
    finite_time: list[Tensor | None] = [None] * len(strengths)
    if steps:
        settings = Settings(temperature, learning_rate, batch_size, steps, max(1, steps // 20))
        infonce = _train_infonce(
            images,
            torch.stack([strength * directions for strength in strengths]),
            settings,
            seed + 2,
            lambda done, total: report(count + count * done // total),
        )
        for number, prediction in enumerate(predictions):
            run = prediction.after_training(
                steps, learning_rate, temperature=temperature, batch_size=batch_size, seeds=[seed]
            )
            finite_time[number] = run.spectrum[-1, 0]
            report(2 * count + number + 1)
    return [
        TrainingComparison(*row)
        for row in zip(strengths, predictions, spectral, infonce, finite_time, strict=True)
    ]


def digit_pixels() -> Tensor:
    """The 1,797 handwritten digits of scikit-learn, centred pixels, shape (1797, 64), float32."""
    pixels = torch.from_numpy(load_digits().data).float() / 16
    return pixels - pixels.mean(0)


def noise_directions(dimension: int, seed: int) -> Tensor:
    """A random half of the directions of space, orthonormal rows, shape (dimension // 2, D)."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(dimension, dimension // 2, generator=generator)
    return torch.linalg.qr(square).Q.T


def predict(
    images: Tensor, noise: Tensor, *, weight_decay: float = 0.0, seed: int = 0
) -> CollapsePrediction:
    """`predict_collapse` for vectors with Gaussian noise of covariance noise^T noise."""

    def views(image: Tensor) -> list[Tensor]:
        return list(image + torch.randn(_VIEWS, len(noise)) @ noise)

    return predict_collapse(
        list(images), views, n_images=len(images), n_views=_VIEWS, weight_decay=weight_decay,
        resamples=2, leave_one_out=False, seed=seed,
    )  # fmt: skip


def train_spectral_contrastive(
    images: Tensor,
    noise: Tensor,
    *,
    weight_decay: float = 0.0,
    invariance: float = 0.0,
    feature_norm: float | None = None,
    width: int | None = None,
    views: int = _VIEWS,
    seed: int = 0,
) -> Tensor:
    """A linear encoder trained by L-BFGS with the spectral contrastive loss, on sampled views.

    L = -2 E z.z' + E (z.w)^2 + invariance E |z - z'|^2 + weight_decay |W|^2, z and z' different
    views of one image, z and w views of any two (HaoChen et al. 2021, "Provable guarantees for
    self-supervised deep learning with spectral contrastive loss").

    Args:
        images: centred, shape (n, D).
        noise: root of the augmentation covariance, shape (k, D).
        weight_decay: factor of |W|^2.
        invariance: kappa of `QuarticLandscape.from_covariances`.
        feature_norm: rho of the same; features are scaled to E|z|^2 = 2 rho, which the term of
            weight decay does not see.
        width: d, of the embedding; D by default.
        views: how many of each image, drawn once.
        seed: of the views and the start.

    Returns:
        W, shape (d, D), float64; of normalized features scaled to them.
    """
    generator = torch.Generator().manual_seed(seed)
    count, dimension = images.shape
    drawn = torch.randn(count, views, len(noise), generator=generator) @ noise
    x = (images[:, None] + drawn).double()
    # Over all pairs of the sample the loss depends on it by two moments only, exactly.
    flat = x.flatten(0, 1)
    second = flat.T @ flat / len(flat)
    together = x.sum(1)
    cross = (together.T @ together / views - second * count) / (count * (views - 1))
    # Trained in whitened coordinates, W = U T: the same minima, reached in few steps.
    values, vectors = torch.linalg.eigh(second)
    kept = values > 1e-9 * values[-1]
    whitening = vectors[:, kept].T / values[kept].sqrt()[:, None]
    wanted = cross - invariance * (second - cross)
    decay = weight_decay / 2 * torch.eye(dimension).double()
    signal = whitening @ wanted @ whitening.T
    decay = whitening @ decay @ whitening.T
    width = dimension if width is None else width
    weight = torch.randn(width, len(signal), generator=generator).double() / dimension**0.5
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-13, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def scaled(u: Tensor) -> Tensor:
        # In whitened coordinates E|z|^2 is the squared norm of the weight.
        return u if feature_norm is None else u * (2 * feature_norm) ** 0.5 / u.norm()

    def loss() -> Tensor:
        optimizer.zero_grad()
        u = scaled(weight)
        value: Tensor = (u @ u.T).square().sum() - 2 * (u @ signal * u).sum()
        value = value + 2 * (weight @ decay * weight).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return scaled(weight.detach()) @ whitening


def _train_infonce(
    images: Tensor,
    noise: Tensor,
    settings: Settings,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Tensor]:
    """Eigenvalues after InfoNCE, one run for each of the noises (R, k, D)."""
    runs, _, dimension = noise.shape
    generators = [torch.Generator().manual_seed(seed + run) for run in range(runs)]
    bound = dimension**-0.5  # torch.nn.Linear's own start
    start = torch.stack([torch.rand(dimension, dimension, generator=g) for g in generators])
    network = Network([(2 * start - 1) * bound])
    train(network, Views(images.expand(runs, -1, -1), noise, generators), settings, progress)
    return [_embedding_eigenvalues(weight.double(), images) for weight in network.layers[0]]


def _embedding_eigenvalues(weight: Tensor, images: Tensor) -> Tensor:
    root = covariance_root(torch.cov(images.double().T), "images").double()
    values = torch.linalg.svdvals(weight @ root.T).square()
    return torch.cat([values, values.new_zeros(len(weight) - len(values))])
