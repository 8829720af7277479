"""Alignment and uniformity against values worked out by hand and the definitions over all pairs."""

import math

import pytest
import torch

from lightly_collapse.functional import alignment, hypersphere, uniformity, wasserstein_uniformity


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_alignment_by_hand():
    # Angles of 0, 90 and 180 degrees: squared chords 0, 2 and 4.
    z0 = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]])
    z1 = torch.tensor([[3.0, 0.0], [0.0, 7.0], [0.0, -1.0]])
    assert float(alignment(z0, z1)) == pytest.approx(2)


def test_uniformity_by_hand():
    # A square on the circle: four pairs at squared distance 2, two at 4.
    z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [0.0, -1.0]])
    expected = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert float(uniformity(z)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("entries", [1, 50, 2**22])
def test_uniformity_in_chunks_is_that_of_all_pairs(monkeypatch, entries):
    monkeypatch.setattr(hypersphere, "_CHUNK_ENTRIES", entries)
    z = rows(37, 5)
    unit = z / z.norm(dim=1, keepdim=True)
    expected = torch.pdist(unit).square().mul(-3).exp().mean().log()
    torch.testing.assert_close(uniformity(z, t=3), expected)


def test_uniformity_is_best_spread_out_and_worst_collapsed():
    collapsed = torch.ones(10, 4)
    assert float(uniformity(collapsed)) == pytest.approx(0, abs=1e-5)
    assert float(uniformity(rows(200, 64))) < -3


def test_wasserstein_uniformity_by_hand():
    # The square again: mu = 0, S = I / 2, which is N(0, I / d) itself.
    square = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert float(wasserstein_uniformity(square)) == pytest.approx(0, abs=1e-7)
    # Two opposite points in the plane: mu = 0, S = diag(1, 0): sqrt(1 + 1 - 2 / sqrt(2)).
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert float(wasserstein_uniformity(opposite)) == pytest.approx(math.sqrt(2 - math.sqrt(2)))
    # Two perpendicular points: |mu|^2 = 1/2, S has the one eigenvalue 1/2.
    corner = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert float(wasserstein_uniformity(corner)) == pytest.approx(1)


def test_wasserstein_uniformity_is_the_formula():
    z = rows(30, 6)
    unit = z / z.norm(dim=1, keepdim=True)
    mu = unit.mean(dim=0)
    s = (unit - mu).T @ (unit - mu) / 30
    values, vectors = torch.linalg.eigh(s)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    expected = (mu @ mu + 1 + s.trace() - 2 / math.sqrt(6) * root.trace()).sqrt()
    torch.testing.assert_close(wasserstein_uniformity(z), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("measure", [uniformity, wasserstein_uniformity])
def test_only_directions_matter(measure, scale):
    z = rows(20, 4, dtype=torch.float32)
    torch.testing.assert_close(measure(z * scale), measure(z))


def test_gradients():
    z0, z1 = rows(7, 3).requires_grad_(), rows(7, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(alignment, (z0, z1))
    assert torch.autograd.gradcheck(uniformity, z0)
    assert torch.autograd.gradcheck(wasserstein_uniformity, z0)


@pytest.mark.parametrize("measure", [uniformity, wasserstein_uniformity])
def test_bad_input(measure):
    with pytest.raises(ValueError, match="z must be finite, got 1 NaN"):
        measure(torch.tensor([[1.0, float("nan")], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="z must hold no zero row, got 1"):
        measure(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="z must be 2-D"):
        measure(torch.ones(3))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"z1 must have the shape of z0, \(2, 3\), got \(3, 3\)"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="two rows or more"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match="t must be positive"):
        uniformity(torch.ones(2, 3), t=0)
