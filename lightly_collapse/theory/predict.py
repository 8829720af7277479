"""Which dimensions will collapse: predicted from the data and the augmentations alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightly_collapse.functional import collapsed_dimensions, effective_rank
from lightly_collapse.theory.augmentations import (
    Transform,
    augmentation_names,
    without_augmentation,
)
from lightly_collapse.theory.landscape import QuarticLandscape
from lightly_collapse.theory.linear_dynamics import LinearDynamics, strong_augmentation_dynamics
from lightly_collapse.theory.views import (
    Covariances,
    Dataset,
    PooledPixels,
    bootstrap_weights,
    collect_views,
    estimate_covariances,
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Loss:
    """What of the loss and the model enters the landscape; see `QuarticLandscape`.

    Attributes:
        width: dimension of the embedding; None for that of the features.
        weight_decay: g, in the units of the landscape.
        invariance: kappa, extra weight on invariance.
        feature_norm: rho, where features are normalized.
    """

    width: int | None
    weight_decay: float
    invariance: float
    feature_norm: float | None

    def landscape(self, covariances: Covariances) -> QuarticLandscape:
        """The landscape of these covariances under this loss."""
        return QuarticLandscape.from_covariances(
            covariances.data,
            covariances.augmentation,
            weight_decay=self.weight_decay,
            invariance=self.invariance,
            feature_norm=self.feature_norm,
        )

    def spectrum(self, covariances: Covariances) -> Tensor:
        """Singular values of the clean embedding at the global minimum, one for each dimension."""
        width = len(covariances.data) if self.width is None else self.width
        return self.landscape(covariances).clean_spectrum(width, covariances.data)


@dataclass(frozen=True)
class LeaveOneOut:
    """What one augmentation costs: the prediction without it, beside the whole one.

    Attributes:
        name: of the step left out.
        spectrum: predicted singular values without it, (width,).
        effective_rank: of that spectrum.
        effective_rank_cost: effective rank that the step takes away; negative where it adds.
        signal_cost: sum of the signal fractions that the step takes away, in dimensions.
        collapsed: dimensions under the tolerance without it.
        collapsed_cost: how many more collapse with it.
    """

    name: str
    spectrum: Tensor
    effective_rank: float
    effective_rank_cost: float
    signal_cost: float
    collapsed: int
    collapsed_cost: int


@dataclass(frozen=True)
class CollapsePrediction:
    """What `predict_collapse` returns; tensors are float64.

    Attributes:
        covariances: the estimated A0 and C, and the mean.
        landscape: the landscape they make under the loss asked for.
        width: dimension of the embedding.
        spectrum: predicted singular values of the clean embedding, (width,), descending.
        spectrum_interval: bootstrap interval of each, (2, width).
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
    rtol: float = 1e-2,
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
        n_views: how many views of each.
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
        return collect_views(dataset, chosen, encode, n_images, n_views, seed, report)

    sample = views("all augmentations", transform)
    covariances = estimate_covariances(sample)
    spectrum = loss.spectrum(covariances)
    rank = _effective_rank(spectrum)
    intervals = _bootstrap(sample, loss, spectrum, rank, rtol, resamples, confidence, seed)
    names = augmentation_names(transform) if leave_one_out else []
    clean = Loss(None, 0.0, 0.0, None).landscape(covariances)
    signal = clean.whitened_eigenvalues
    return CollapsePrediction(
        covariances=covariances,
        landscape=loss.landscape(covariances),
        width=len(spectrum),
        spectrum=spectrum,
        spectrum_interval=intervals[0],
        rtol=rtol,
        collapsed=_collapsed(spectrum, rtol),
        collapsed_interval=intervals[1],
        effective_rank=rank,
        effective_rank_interval=intervals[2],
        signal_fraction=signal,
        patterns=clean.patterns,
        feature_shape=encode.shape if isinstance(encode, PooledPixels) else None,
        leave_one_out=tuple(
            _left_out(
                name,
                views(f"without {name}", without_augmentation(transform, name)),
                loss,
                spectrum,
                float(signal.sum()),
                rtol,
            )
            for name in names
        ),
        n_images=len(sample),
        n_views=n_views,
        confidence=confidence,
    )


def _left_out(
    name: str, sample: Tensor, loss: Loss, whole: Tensor, signal: float, rtol: float
) -> LeaveOneOut:
    covariances = estimate_covariances(sample)
    spectrum = loss.spectrum(covariances)
    clean = Loss(None, 0.0, 0.0, None).landscape(covariances)
    rank = _effective_rank(spectrum)
    return LeaveOneOut(
        name=name,
        spectrum=spectrum,
        effective_rank=rank,
        effective_rank_cost=rank - _effective_rank(whole),
        signal_cost=float(clean.whitened_eigenvalues.sum()) - signal,
        collapsed=_collapsed(spectrum, rtol),
        collapsed_cost=_collapsed(whole, rtol) - _collapsed(spectrum, rtol),
    )


def _collapsed(spectrum: Tensor, rtol: float) -> int:
    if not spectrum.any():
        return len(spectrum)
    return int(collapsed_dimensions(spectrum, rtol))


def _effective_rank(spectrum: Tensor) -> float:
    return float(effective_rank(spectrum)) if spectrum.any() else 0.0


def _bootstrap(
    sample: Tensor,
    loss: Loss,
    spectrum: Tensor,
    rank: float,
    rtol: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Tensor, tuple[int, int], tuple[float, float]]:
    """Intervals of the spectrum, of the count and of the effective rank."""
    drawn = torch.stack(
        [
            loss.spectrum(estimate_covariances(sample, weights))
            for weights in bootstrap_weights(len(sample), resamples, seed)
        ]
    )
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    counts = torch.tensor([_collapsed(s, rtol) for s in drawn]).double()
    ranks = torch.tensor([_effective_rank(s) for s in drawn], dtype=torch.float64)
    low, high = counts.quantile(tails).tolist()
    return (
        drawn.quantile(tails, dim=0),
        (int(low), -int(-high // 1)),
        tuple(ranks.quantile(tails).tolist()),
    )
