"""Which dimensions will collapse: predicted from the data and the augmentations alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.theory.augmentations import (
    Transform,
    augmentation_names,
    without_augmentation,
)
from lightly_collapse.theory.estimate import Loss, SpectrumEstimate, estimate_spectrum
from lightly_collapse.theory.landscape import QuarticLandscape
from lightly_collapse.theory.linear_dynamics import LinearDynamics, strong_augmentation_dynamics
from lightly_collapse.theory.views import Covariances, Dataset, PooledPixels, collect_views

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LeaveOneOut:
    """What one augmentation costs: the prediction without it, against the whole one.

    Attributes:
        name: of the step left out.
        spectrum: predicted singular values without it, (width,).
        effective_rank: of that spectrum.
        effective_rank_cost: how much higher that is than with the step; negative where the step
            evens the spectrum out.
        effective_rank_cost_interval: bootstrap interval of the cost, over the same images.
        signal: sum of the signal fractions without it, in dimensions.
        signal_cost: how much of it the step takes away.
        collapsed: dimensions under the tolerance without it.
        collapsed_cost: how many more collapse with it.
        collapsed_cost_interval: bootstrap interval of that.
    """

    name: str
    spectrum: Tensor
    effective_rank: float
    effective_rank_cost: float
    effective_rank_cost_interval: tuple[float, float]
    signal: float
    signal_cost: float
    collapsed: int
    collapsed_cost: int
    collapsed_cost_interval: tuple[int, int]


@dataclass(frozen=True)
class CollapsePrediction:
    """What `predict_collapse` returns; tensors are float64.

    Attributes:
        covariances: the estimated A0 and C, and the mean.
        landscape: the landscape they make under the loss asked for.
        width: dimension of the embedding.
        spectrum: predicted singular values of the clean embedding, (width,), descending: of
            training on these images.
        spectrum_interval: bootstrap interval of each, (2, width), for training on more images of
            the kind; see `SpectrumEstimate.interval`.
        rtol: tolerance, relative to the largest singular value.
        collapsed: how many singular values lie under it.
        collapsed_interval: bootstrap interval of that number.
        effective_rank: exp(entropy) of the predicted singular values; 0 at complete collapse.
        effective_rank_interval: its bootstrap interval.
        signal_fraction: a/(a+c) by direction, (r,), descending: what part of the variance of the
            views comes from the images; of the data and transform alone, whatever the loss.
        patterns: the directions to which they belong, one a row, (r, D): how the features move.
        feature_shape: (C, h, w) where features are pooled pixels, None otherwise.
        leave_one_out: the cost of each augmentation, in the order of the transform.
        n_images: images used.
        n_views: views of each.
        confidence: level of the intervals.
    """

    covariances: Covariances
    landscape: QuarticLandscape
    width: int
    spectrum: Tensor
    spectrum_interval: Tensor
    rtol: float
    collapsed: int
    collapsed_interval: tuple[int, int]
    effective_rank: float
    effective_rank_interval: tuple[float, float]
    signal_fraction: Tensor
    patterns: Tensor
    feature_shape: tuple[int, int, int] | None
    leave_one_out: tuple[LeaveOneOut, ...]
    n_images: int
    n_views: int
    confidence: float

    def after_training(
        self,
        steps: int,
        learning_rate: float,
        *,
        temperature: float = 0.1,
        batch_size: int = 256,
        seeds: Sequence[int] = (0, 1, 2),
        progress: Callable[[int, int], None] | None = None,
    ) -> LinearDynamics:
        """The prediction for InfoNCE stopped after finite training, by `spectrum` over time.

        The minimum of the landscape is where training would end. Directions of small variance
        get there late, so that a real spectrum is steeper. This runs the linear dynamics to the
        training time on Gaussian data with the estimated covariances, centred, with plain SGD.

        Args:
            steps: SGD steps.
            learning_rate: of plain SGD.
            temperature: of the softmax.
            batch_size: anchors in a step.
            seeds: one run for each.
            progress: called with (steps done, steps).

        Returns:
            The recorded runs; `spectrum[-1].mean(0).sqrt()` compares with `self.spectrum` in
            shape, not in scale.
        """
        values, vectors = torch.linalg.eigh(self.covariances.data)
        return strong_augmentation_dynamics(
            data_covariance=(vectors * values.clamp(min=0)) @ vectors.T,
            augmentation_covariance=self.covariances.augmentation,
            width=self.width,
            temperature=temperature,
            learning_rate=learning_rate,
            batch_size=batch_size,
            steps=steps,
            spectrum_samples=0,
            bias=False,
            record_every=max(1, steps // 100),
            seeds=seeds,
            progress=progress,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the matrices, ready for JSON."""
        return {
            "n_images": self.n_images,
            "n_views": self.n_views,
            "features": len(self.covariances.data),
            "width": self.width,
            "rtol": self.rtol,
            "confidence": self.confidence,
            "collapsed": self.collapsed,
            "collapsed_interval": list(self.collapsed_interval),
            "effective_rank": self.effective_rank,
            "effective_rank_interval": list(self.effective_rank_interval),
            "signal": float(self.signal_fraction.sum()),
            "spectrum": self.spectrum.tolist(),
            "spectrum_interval": self.spectrum_interval.tolist(),
            "signal_fraction": self.signal_fraction.tolist(),
            "leave_one_out": [
                {**vars(step), "spectrum": step.spectrum.tolist()} for step in self.leave_one_out
            ],
        }


def predict_collapse(
    dataset: Dataset,
    transform: Transform,
    encoder: Callable[[Tensor], Tensor] | None = None,
    n_images: int = 1000,
    n_views: int = 8,
    *,
    width: int | None = None,
    weight_decay: float = 0.0,
    invariance: float = 0.0,
    feature_norm: float | None = None,
    rtol: float = DEFAULT_RTOL,
    pool: int = 8,
    leave_one_out: bool = True,
    resamples: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> CollapsePrediction:
    """Predict which dimensions of an embedding will collapse, before training.

    Streams augmented views of real images through a fixed encoder, estimates the covariance A0 of
    the clean data (between images) and C of the augmentation (between views of one image), and
    solves the landscape B = A0 - kappa C - g I, S = A0 + C: a direction with variances a and c
    keeps the share a/(a+c) of its whitened variance, and its singular value in the clean embedding
    is a/(a+c) / sqrt(2), up to a scale that all share (Ziyin et al. 2023; see
    `QuarticLandscape`).

    What it is worth: exact for a linear model on these features, trained to convergence with the
    spectral contrastive loss. For InfoNCE it ranks the directions and gives the order of magnitude;
    the trained spectrum is steeper, because directions of small variance lag behind
    (`CollapsePrediction.after_training` has that in it). For a deep network it tells what its input
    offers at that encoder, not what its layers make of it: a network can build features that no
    linear map of these has.

    Args:
        dataset: map-style; an item is an image or a tuple that starts with one.
        transform: makes at least two views of an image, such as any of Lightly's.
        encoder: fixed map from a batch of views to features, e.g. an untrained or a trained
            backbone; pixels after average pooling by default.
        n_images: how many images, at random; all where there are fewer. Take several times as many
            as there are features.
        n_views: how many views of each. A fraction a/(a+c) is known to about
            1 / (n_views sqrt(n_images)) at best: weak directions need many views.
        width: dimension of the embedding; that of the features by default.
        weight_decay: g in g |W|^2, in the units of the landscape; temperature times the factor of
            |W|^2 in the training loss for InfoNCE, half of it for the spectral contrastive loss.
        invariance: kappa, how many times more the loss weighs invariance.
        feature_norm: rho; 1 / (2 temperature) for InfoNCE with normalized features.
        rtol: a dimension counts as collapsed under this times the largest singular value.
        pool: the default encoder averages images to at most pool x pixels a side.
        leave_one_out: whether to predict without each random step of the transform too.
        resamples: bootstrap samples (of images) for the intervals.
        confidence: their level.
        seed: decides images, augmentations and bootstrap.
        progress: called with (what is being done, images done, images).

    Returns:
        The prediction.

    Raises:
        ValueError: if a number is out of its range, the transform returns one view, the images
            differ in size after it, or the features do not vary.

    Examples:
        >>> from lightly.transforms.multi_view_transform import MultiViewTransform
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.randn(400, 3, generator=generator)
        >>> def noise(x):
        ...     return x + torch.tensor([0.0, 1.0, 20.0]) * torch.randn(3)
        >>> prediction = predict_collapse(images, MultiViewTransform([noise, noise]))
        >>> [round(v, 1) for v in prediction.signal_fraction.tolist()]
        [1.0, 0.5, 0.0]
        >>> prediction.collapsed
        1
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie between 0 and 1, got {rtol}")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    loss = Loss(width, weight_decay, invariance, feature_norm)
    encode = PooledPixels(pool) if encoder is None else encoder

    def views(what: str, chosen: Transform) -> Tensor:
        report = None if progress is None else lambda done, total: progress(what, done, total)
        return collect_views(
            dataset,
            chosen,
            encode,
            n_images=n_images,
            n_views=n_views,
            seed=seed,
            progress=report,
        )

    whole = estimate_spectrum(views("all augmentations", transform), loss, rtol, resamples, seed)
    steps = []
    for name in augmentation_names(transform) if leave_one_out else []:
        try:
            sample = views(f"without {name}", without_augmentation(transform, name))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"transform must work without each of its random steps, but fails without {name} "
                f"({error}); leave_one_out=False does without"
            ) from error
        # A difference over the same images varies little: fewer resamples will do.
        other = estimate_spectrum(sample, loss, rtol, min(resamples, 30), seed)
        steps.append(_cost(name, other, whole, confidence))
    return CollapsePrediction(
        covariances=whole.covariances,
        landscape=loss.landscape(whole.covariances),
        width=len(whole.plain["spectrum"]),
        spectrum=whole.plain["spectrum"],
        spectrum_interval=whole.interval("spectrum", confidence),
        rtol=rtol,
        collapsed=int(whole.plain["collapsed"]),
        collapsed_interval=_whole_numbers(whole.interval("collapsed", confidence)),
        effective_rank=float(whole.plain["effective_rank"]),
        effective_rank_interval=_pair(whole.interval("effective_rank", confidence)),
        signal_fraction=whole.signal.whitened_eigenvalues,
        patterns=whole.signal.patterns,
        feature_shape=encode.shape if isinstance(encode, PooledPixels) else None,
        leave_one_out=tuple(steps),
        n_images=whole.n_images,
        n_views=n_views,
        confidence=confidence,
    )


def _cost(
    name: str, other: SpectrumEstimate, whole: SpectrumEstimate, confidence: float
) -> LeaveOneOut:
    signal = float(other.signal.whitened_eigenvalues.sum())
    collapsed = whole.interval("collapsed", confidence, minus=other)
    return LeaveOneOut(
        name=name,
        spectrum=other.plain["spectrum"],
        effective_rank=float(other.plain["effective_rank"]),
        effective_rank_cost=float(other.plain["effective_rank"] - whole.plain["effective_rank"]),
        effective_rank_cost_interval=_pair(
            other.interval("effective_rank", confidence, minus=whole)
        ),
        signal=signal,
        signal_cost=signal - float(whole.signal.whitened_eigenvalues.sum()),
        collapsed=int(other.plain["collapsed"]),
        collapsed_cost=int(whole.plain["collapsed"] - other.plain["collapsed"]),
        collapsed_cost_interval=_whole_numbers(collapsed),
    )


def _pair(interval: Tensor) -> tuple[float, float]:
    return float(interval[0]), float(interval[1])


def _whole_numbers(interval: Tensor) -> tuple[int, int]:
    return int(interval[0].floor()), int(interval[1].ceil())
