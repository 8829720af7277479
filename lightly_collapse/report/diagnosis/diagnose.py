"""A diagnosis of any model in memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.report.diagnosis.conclusion import Diagnosis, conclude
from lightly_collapse.report.diagnosis.evidence import (
    Training,
    Views,
    distinct_images,
    model_evidence,
    untrained_copy,
    views_evidence,
)
from lightly_collapse.theory.augmentations import (
    Transform,
    augmentation_names,
    without_augmentation,
)
from lightly_collapse.theory.views import Dataset, collect_views


def diagnose(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    dataset: Dataset | None = None,
    transform: Transform | None = None,
    untrained: nn.Module | None = None,
    training: Training | None = None,
    n_images: int = 256,
    seed: int = 0,
    name: str | None = None,
    **settings: Any,
) -> Diagnosis:
    """Answer whether a backbone is collapsed, where, why, and what to change.

    Every cause is tested by a measurement: duplicates among the training images; a projector that
    is missing or narrow; norms of the weights against those of random weights; dead units; the
    views of an image told from those of others, with every random step left out in turn, in the
    features of this backbone; the objective where nothing else explains a constant output.

    Args:
        model: from images to representations.
        dataloader: of images, as `measure` takes it, two or more times as many as dimensions;
            passed over twice.
        head: from representations to what the loss acts on; `nn.Identity()` where there is nothing
            between them, None where it is not known.
        dataset: the training images, map-style; with it duplicates are looked for.
        transform: makes the training's views of an item of `dataset`, ready for the model.
        untrained: the architecture with random weights; by default a copy of the model whose layers
            are reset.
        training: what else is known of the training.
        n_images: images whose views are looked at.
        seed: of the choice of images and of the views.
        name: of the model.
        settings: of `measure`.

    Returns:
        The diagnosis.

    Raises:
        ValueError: as `measure`, or if `transform` is given without `dataset`.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.rand(64, 3, 8, 8, generator=generator)
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten())
        >>> with torch.no_grad():
        ...     _ = encoder[0].weight.mul_(1e-3)
        >>> diagnose(encoder, DataLoader(images, batch_size=16)).verdict.state
        'complete'
    """
    if transform is not None and dataset is None:
        raise ValueError("transform makes views of the training images: give dataset too")
    known = training or Training()
    if isinstance(head, nn.Identity):
        known, head = replace(known, has_projector=False), None
    untrained = untrained_copy(model) if untrained is None else untrained
    evidence = model_evidence(model, dataloader, untrained, head, **settings)
    evidence = replace(evidence, training=known)
    if dataset is not None:
        items = (dataset[i] for i in range(min(len(dataset), 10 * n_images)))
        images, distinct = distinct_images(items)
        evidence = replace(evidence, images=images, distinct=distinct)
    if transform is not None and dataset is not None:
        views = views_of(dataset, transform, n_images, seed)
        left_out = {
            step: views_of(dataset, without_augmentation(transform, step), n_images, seed)
            for step in augmentation_names(transform)
        }
        evidence = replace(evidence, views=views_evidence(views, left_out, model, untrained))
    return conclude(evidence, name or type(model).__name__)


def views_of(dataset: Dataset, transform: Transform, n_images: int, seed: int) -> Views:
    """Two views of some images of a data set by a transform, for `views_evidence`."""

    def views(encoders: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        widths: list[int] = []

        def together(batch: Tensor) -> Tensor:
            parts = [encode(batch).flatten(1) for encode in encoders]
            widths[:] = [part.shape[1] for part in parts]
            return torch.cat(parts, dim=1)

        found = collect_views(dataset, transform, together, n_images=n_images, n_views=2, seed=seed)
        return list(torch.split(found, widths, dim=2))

    return views
