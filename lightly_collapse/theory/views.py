"""Augmented views of real images, and the two covariances that decide about collapse."""

import random
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightly_collapse.theory.augmentations import Transform

_BATCH = 64  # images encoded at once


class Dataset(Sized, Protocol):
    """A map-style dataset: a length and items, each an image or (image, ...)."""

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Covariances:
    """Estimated from n images with q views each; unbiased.

    Attributes:
        data: A0, covariance of the clean data, between images, (D, D). The covariance of the
            mean views less what their finite number leaves of the augmentation in it, so that
            eigenvalues close to zero may come out slightly negative.
        augmentation: C, covariance of the views of one image, averaged over images, (D, D).
        mean: of all views, (D,).
    """

    data: Tensor
    augmentation: Tensor
    mean: Tensor


def estimate_covariances(views: Tensor, weights: Tensor | None = None) -> Covariances:
    """A0 and C from the views of a sample of images.

    Args:
        views: shape (n, q, D), n >= 2 images, q >= 2 views of each.
        weights: how often each image counts, shape (n,), for the bootstrap; once by default.

    Returns:
        The estimates, float64.

    Raises:
        ValueError: if `views` has another number of axes, or fewer than 2 images or views.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = 2 * torch.randn(5000, 1, 1, generator=generator)
        >>> noise = torch.randn(5000, 4, 1, generator=generator)
        >>> covariances = estimate_covariances(clean + noise)
        >>> round(covariances.data.item()), round(covariances.augmentation.item())
        (4, 1)
    """
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise ValueError(
            f"views must have shape (n, q, D) with n, q >= 2, got {tuple(views.shape)}"
        )
    count, q, dimension = views.shape
    views = views.double()
    weights = torch.ones(count) if weights is None else weights
    weights = weights.to(views)
    total = weights.sum()
    means = views.mean(1)
    mean = weights @ means / total
    centered = means - mean
    between = centered.T @ (weights[:, None] * centered) / (total - 1)
    deviations = ((views - means[:, None]) * weights.sqrt()[:, None, None]).reshape(-1, dimension)
    augmentation = deviations.T @ deviations / (total * (q - 1))
    return Covariances(between - augmentation / q, augmentation, mean)


class PooledPixels:
    """The default encoder: images (B, C, H, W) averaged to at most size x size, then flattened.

    Vectors (B, D) pass as they are.

    Attributes:
        shape: (C, h, w) of the pooled images last seen; None before, and where they were vectors.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"pool must be at least 1, got {size}")
        self.size = size
        self.shape: tuple[int, int, int] | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        """Pool and flatten a batch."""
        if batch.ndim == 4:
            shape = (min(self.size, batch.shape[2]), min(self.size, batch.shape[3]))
            batch = nn.functional.adaptive_avg_pool2d(batch, shape)
            self.shape = (batch.shape[1], *shape)
        return batch.flatten(1)


def collect_views(
    dataset: Dataset,
    transform: Transform,
    encoder: Callable[[Tensor], Tensor],
    *,
    n_images: int,
    n_views: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Encoded views of a random choice of images.

    Every image is augmented from a seed of its own, whatever came before it; the global random
    states are left as they were found.

    Args:
        dataset: map-style; an item is an image or a tuple that starts with one.
        transform: makes a list of at least two views of an image, such as any of Lightly's; it is
            called as often as `n_views` needs.
        encoder: from a batch of views (B, C, H, W), or (B, D), to features of B rows; a module is
            run in evaluation mode on its own device.
        n_images: how many images, at least 2; all where the dataset has fewer.
        n_views: how many views of each, at least 2.
        seed: decides which images and which augmentations.
        progress: called with (images done, images).

    Returns:
        Shape (n, n_views, D), float32, on the CPU.

    Raises:
        ValueError: if there are fewer than two images or views asked for or there, the transform
            returns one view or something that is not a tensor, views of different images differ
            in size, or features are not finite.
    """
    if n_views < 2:
        raise ValueError(f"n_views must be at least 2, got {n_views}")
    if n_images < 2:
        raise ValueError(f"n_images must be at least 2, got {n_images}")
    if len(dataset) < 2:
        raise ValueError(f"dataset must hold at least 2 images, got {len(dataset)}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    chosen = order[:n_images].tolist()
    features = []
    with _random_states_kept(), _evaluating(encoder) as encode:
        for start in range(0, len(chosen), _BATCH):
            batch = []
            for index in chosen[start : start + _BATCH]:
                _set_seeds(seed, index)
                item = dataset[index]
                image = item[0] if isinstance(item, tuple | list) else item
                batch.append(_views_of(image, transform, n_views))
            features.append(_stacked([encode(_batch(view)) for view in zip(*batch, strict=True)]))
            if progress is not None:
                progress(min(start + _BATCH, len(chosen)), len(chosen))
    views = torch.cat(features)
    if not views.isfinite().all():
        raise ValueError("encoder must give finite features, got NaN or inf")
    return views


def _views_of(image: Any, transform: Transform, count: int) -> list[Tensor]:
    views: list[Tensor] = []
    while len(views) < count:
        made = transform(image)
        if not isinstance(made, list | tuple) or len(made) < 2:
            got = f"{len(made)}" if isinstance(made, list | tuple) else f"a {type(made).__name__}"
            raise ValueError(
                f"transform must return a list of at least two views, got {got}; "
                "lightly.transforms.MultiViewTransform([t, t]) makes two of a single one"
            )
        for view in made:
            if not isinstance(view, Tensor) or view.ndim not in (1, 3):
                kind = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
                raise ValueError(
                    f"transform must return tensors of shape (C, H, W) or (D,), got {kind}"
                )
        views.extend(made)
    return views[:count]


def _stacked(features: list[Tensor]) -> Tensor:
    widths = {feature.shape[1] for feature in features}
    if len(widths) > 1:
        raise ValueError(
            f"encoder must give all views the same number of features, got {sorted(widths)}"
        )
    return torch.stack(features, 1)


def _batch(views: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(view.shape) for view in views}
    if len(shapes) > 1:
        raise ValueError(
            f"transform must bring all images to one size (add a Resize or a crop), got views of "
            f"shapes {sorted(shapes)[:4]}"
        )
    return torch.stack(list(views)).float()


@contextmanager
def _evaluating(encoder: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    module = encoder if isinstance(encoder, nn.Module) else None
    training = module is not None and module.training
    parameter = next(module.parameters(), None) if module is not None else None

    def encode(batch: Tensor) -> Tensor:
        count = len(batch)
        if parameter is not None:
            batch = batch.to(parameter.device, parameter.dtype)
        features = encoder(batch)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != count:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"encoder must return a tensor with {count} rows, got {got}")
        return features.detach().flatten(1).float().cpu()

    try:
        if module is not None:
            module.eval()
        with torch.no_grad():
            yield encode
    finally:
        if module is not None:
            module.train(training)


def _set_seeds(seed: int, index: int) -> None:
    mixed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - Lightly's transforms draw from the global generator
    torch.default_generator.manual_seed(mixed)  # the CPU's; seeding CUDA too is slow


@contextmanager
def _random_states_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def bootstrap_weights(count: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each of `count` images is drawn in each of `resamples` bootstrap samples."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        yield torch.bincount(drawn, minlength=count)
