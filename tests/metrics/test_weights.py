"""Weight spectra of layers whose singular values are known."""

import math

import pytest
import torch
from torch import nn

from lightly_collapse.metrics import weight_spectra
from tests.helpers import orthonormal


def layer_with(matrix, layer):
    layer.weight = nn.Parameter(matrix.float().reshape(layer.weight.shape))
    return layer


def test_linear_layer_of_known_singular_values():
    s = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    matrix = orthonormal(3, 3) @ torch.diag(s) @ orthonormal(3, 7, seed=1)
    spectrum = weight_spectra(layer_with(matrix, nn.Linear(7, 3)))["weight"]
    assert spectrum.shape == (3, 7)
    torch.testing.assert_close(
        spectrum.normalized_eigenvalues, torch.tensor([1, 0.25, 0.0625]), rtol=1e-5, atol=0
    )
    assert spectrum.orthogonality_residual == pytest.approx(9 + 0 + 0.75**2, rel=1e-5)
    assert spectrum.stable_rank == pytest.approx((4 + 1 + 0.25) / 4, rel=1e-5)
    assert spectrum.condition_number == pytest.approx(4, rel=1e-5)


def test_kernels_are_read_as_one_row_a_filter_and_groups_apart():
    conv = layer_with(orthonormal(4, 18), nn.Conv2d(2, 4, 3))
    # Two groups, each orthonormal, the second twice as large.
    grouped = layer_with(
        torch.cat([orthonormal(2, 9), 2 * orthonormal(2, 9, seed=1)]), nn.Conv2d(2, 4, 3, groups=2)
    )
    up = layer_with(orthonormal(9, 5).T, nn.ConvTranspose1d(5, 3, 3))
    spectra = weight_spectra(nn.ModuleDict({"conv": conv, "grouped": grouped, "up": up}))
    assert list(spectra) == ["conv.weight", "grouped.weight", "up.weight"]
    assert spectra["conv.weight"].orthogonality_residual == pytest.approx(0, abs=1e-10)
    eigenvalues = spectra["grouped.weight"].normalized_eigenvalues
    torch.testing.assert_close(eigenvalues, torch.tensor([1, 1, 0.25, 0.25]))
    assert spectra["grouped.weight"].shape == (4, 9)
    assert spectra["up.weight"].shape == (3, 15)


def test_frozen_layers_count_shared_ones_once_and_zero_ones_have_no_rank():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    zero = layer_with(torch.zeros(2, 3), nn.Linear(3, 2))
    spectra = weight_spectra(nn.Sequential(frozen, frozen, zero))
    assert list(spectra) == ["0.weight", "2.weight"]
    assert math.isnan(spectra["2.weight"].stable_rank)
    assert not spectra["2.weight"].normalized_eigenvalues.any()


def test_half_weights():
    spectrum = weight_spectra(layer_with(torch.eye(4), nn.Linear(4, 4)).half())["weight"]
    torch.testing.assert_close(spectrum.normalized_eigenvalues, torch.ones(4))


def test_bad_modules():
    with pytest.raises(ValueError, match="got Identity with none"):
        weight_spectra(nn.Identity())
    with pytest.raises(ValueError, match="weight must be finite, got 6 NaN or inf"):
        weight_spectra(layer_with(torch.full((2, 3), math.nan), nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="lazy"):
        weight_spectra(nn.LazyLinear(3))
