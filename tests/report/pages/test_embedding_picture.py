"""The picture of a representation: neighbours stay neighbours, classes keep their colours."""

import pytest
import torch

from lightly_collapse.report.pages.embedding_picture import embedding_picture, tsne_positions


def blobs(classes, rows=30):
    labels = torch.arange(classes).repeat_interleave(rows)
    noise = torch.randn(classes * rows, 16, generator=torch.Generator().manual_seed(0))
    return 10 * torch.eye(16)[labels % 16] + noise, labels


def test_clusters_stay_apart():
    x, labels = blobs(4)
    positions, _ = tsne_positions(x)
    distances = torch.cdist(positions, positions)
    distances.fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).float().mean() > 0.95


@pytest.mark.parametrize("classes", [3, 12])
def test_every_class_is_drawn_once_in_a_colour_of_its_own(classes):
    x, labels = blobs(classes)
    axes = embedding_picture(x, labels, size=60).axes[0]
    assert sum(len(part.get_offsets()) for part in axes.collections) == 60
    colours = {tuple(part.get_facecolor()[0]) for part in axes.collections}
    assert len(colours) == len(axes.collections) == classes


@pytest.mark.parametrize(
    ("features", "said"),
    [(torch.rand(4, 3), "five rows"), (torch.full((9, 2), torch.nan), "must be finite")],
)
def test_bad_features_are_refused(features, said):
    with pytest.raises(ValueError, match=said):
        tsne_positions(features)
