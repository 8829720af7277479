"""What a trained backbone knows and how many dimensions it uses, on held-out images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.functional import (
    collapsed_dimensions,
    effective_rank,
    geometric_mean,
    lid_mom,
    rankme,
    singular_values,
)
from lightly_collapse.metrics import weight_spectra
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.probes import knn_accuracy, linear_accuracy

COLLAPSE_RTOL = 1e-2
"""A dimension counts as collapsed when its singular value is below this share of the largest."""

LID_NEIGHBOURS = 20
"""Neighbours of the measured mLID."""


@dataclass(frozen=True)
class Measured:
    """A backbone on held-out images.

    Attributes:
        knn: accuracy of the nearest-neighbour vote, in [0, 1]; None without labels.
        linear: accuracy of logistic regression, in [0, 1]; None without labels.
        rankme: RankMe of the representation.
        effective_rank: effective rank of the centred representation.
        collapsed: collapsed dimensions of the centred representation.
        mlid: geometric mean of its local intrinsic dimensionality.
        width: dimensions of the representation.
        residual: mean over the layers of the squared distance of W from orthonormal filters, each
            divided by the smaller side of W.
        embedding_rankme: RankMe of the embedding; None where none was given.
        embedding_width: its dimensions; None likewise.
        spectrum: singular values of the centred representation, in descending order.
        embedding_spectrum: of the centred embedding; empty where none was given.
        weight_eigenvalues: from a layer's name to its weight's normalised eigenvalues.
    """

    knn: float | None
    linear: float | None
    rankme: float
    effective_rank: float
    collapsed: int
    mlid: float
    width: int
    residual: float
    embedding_rankme: float | None
    embedding_width: int | None
    spectrum: list[float]
    embedding_spectrum: list[float]
    weight_eigenvalues: dict[str, list[float]]


@torch.no_grad()
def representations(
    backbone: nn.Module, data: PretrainData, loader: Iterable[Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The representations of all images of a loader.

    Args:
        backbone: in evaluation mode, on `device`.
        data: whose loader it is.
        loader: batches of images with labels.
        device: where to compute.

    Returns:
        (n, d) float32 and (n,) labels, on the CPU.
    """
    features, labels = [], []
    for batch in loader:
        moved = [part.to(device) if isinstance(part, Tensor) else part for part in batch]
        images, classes = data.on_after_batch_transfer(moved, 0)
        features.append(backbone(images).float().cpu())
        labels.append(classes.cpu())
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def measure_backbone(
    backbone: nn.Module,
    data: PretrainData,
    device: torch.device,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Measured:
    """Measure a backbone on held-out images; the training images, as they are, teach the probes.

    Args:
        backbone: in evaluation mode, on `device`, from images to (n, d).
        data: set up.
        device: where to compute representations.
        embed: from representations on `device` to what the loss acted on.

    Returns:
        The measures.

    Raises:
        ValueError: if there are too few images to measure, or a representation is not finite.
    """
    train_loader, held_out_loader = data.evaluation_loaders()
    features, labels = representations(backbone, data, held_out_loader, device)
    knn = linear = None
    if data.num_classes > 1:
        bank = representations(backbone, data, train_loader, device)
        knn = knn_accuracy(*bank, features, labels)
        linear = linear_accuracy(*bank, features, labels)
    spectrum = singular_values(features, center=True)
    embedding = embed(features.to(device)).float().cpu() if embed is not None else None
    weights = weight_spectra(backbone)
    return Measured(
        knn=knn,
        linear=linear,
        rankme=float(rankme(features)),
        effective_rank=float(effective_rank(spectrum)),
        collapsed=int(collapsed_dimensions(spectrum, COLLAPSE_RTOL)),
        mlid=float(geometric_mean(lid_mom(features, k=min(LID_NEIGHBOURS, len(features) - 1)))),
        width=features.shape[1],
        residual=sum(w.orthogonality_residual / min(w.shape) for w in weights.values())
        / len(weights),
        embedding_rankme=float(rankme(embedding)) if embedding is not None else None,
        embedding_width=embedding.shape[1] if embedding is not None else None,
        spectrum=spectrum.tolist(),
        embedding_spectrum=(
            singular_values(embedding, center=True).tolist() if embedding is not None else []
        ),
        weight_eigenvalues={name: w.normalized_eigenvalues.tolist() for name, w in weights.items()},
    )
