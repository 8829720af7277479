"""Random orthonormal weights to start from."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lightly_collapse.functional import weight_matrix
from lightly_collapse.loss import OrthogonalityRegularizer

LAYERS = [
    nn.Linear(6, 4),
    nn.Linear(4, 6),
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(2, 30, 1),
    nn.Conv2d(6, 9, 3, groups=3),
    nn.Conv2d(6, 6, 3, groups=6),
    nn.ConvTranspose2d(4, 6, 3),
    nn.ConvTranspose2d(6, 9, 2, groups=3),
    nn.MultiheadAttention(6, 2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_smaller_side_of_every_weight_becomes_orthonormal(layer: nn.Module) -> None:
    regularizer = OrthogonalityRegularizer(layer, split_qkv=True)
    regularizer.initialize()
    for name, residual in regularizer.residuals().items():
        assert residual == pytest.approx(0, abs=1e-9), name


def test_rows_are_whole_filters_of_a_grouped_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(6, 9, 2, groups=3)
    OrthogonalityRegularizer(layer).initialize()
    filters = weight_matrix(layer.weight.detach(), groups=3, transposed=True)
    torch.testing.assert_close(filters @ filters.mT, torch.eye(3).expand(3, 3, 3))


def test_draws_follow_the_seed_and_only_chosen_weights_change() -> None:
    layers = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        layer = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
        torch.manual_seed(seed)
        OrthogonalityRegularizer(layer, include="0.weight").initialize()
        layers.append(layer)
    a, b, c = layers
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert torch.equal(a[1].weight, c[1].weight)


def test_computed_weights_are_refused_by_name() -> None:
    layer = nn.Sequential(spectral_norm(nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=r"0\.weight is computed by"):
        OrthogonalityRegularizer(layer).initialize()
