"""CKA, neighbour overlap, information imbalance and modality gap against plain definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightly_collapse import functional
from lightly_collapse.functional import cka, information_imbalance, modality_gap, neighbor_overlap

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "conventions.json").read_text())


def pair(n=60, d=7, e=5, mean=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) + mean
    y = x[:, :e].tanh() @ torch.randn(e, e, generator=g, dtype=torch.float64)
    return x, y + 0.3 * torch.randn(n, e, generator=g, dtype=torch.float64)


def hsic(k, m):
    """Song et al. 2012, equation 4, term by term."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    return (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def plain_cka(x, y, debiased):
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    if debiased:
        return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5
    h = np.eye(len(k)) - 1 / len(k)
    k, m = h @ k @ h, h @ m @ h
    return (k * m).sum() / ((k * k).sum() * (m * m).sum()) ** 0.5


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("n", "d", "e"), [(60, 7, 5), (9, 30, 4), (4, 3, 3)])
def test_cka_is_that_of_the_kernels(n, d, e, debiased):
    x, y = pair(n, d, min(d, e))
    expected = plain_cka(x, y, debiased)
    assert float(cka(x, y, debiased)) == pytest.approx(expected, abs=1e-10, nan_ok=True)
    assert float(cka(x + 1e4, y, debiased)) == pytest.approx(expected, abs=1e-8, nan_ok=True)


def test_debiased_cka_is_zero_on_average_for_independent_rows():
    g = torch.Generator().manual_seed(0)
    values = [
        float(cka(torch.randn(20, 30, generator=g), torch.randn(20, 30, generator=g)))
        for _ in range(60)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 60**0.5
    assert cka(torch.randn(20, 30, generator=g), torch.randn(20, 30, generator=g), False) > 0.4


def test_cka_has_a_gradient_and_knows_no_constant():
    x, y = pair(12, 4, 3)
    assert torch.autograd.gradcheck(cka, (x.requires_grad_(), y.requires_grad_()))
    assert cka(torch.ones(9, 3), torch.randn(9, 3)).isnan()


def test_overlap_and_imbalance_are_those_of_sorted_distances():
    x, y = pair()
    n = len(x)
    order = {}
    for name, z in (("x", x), ("y", y)):
        d = torch.cdist(z, z).fill_diagonal_(-1)
        order[name] = d.argsort(dim=1).numpy()[:, 1:]
    shared = [np.intersect1d(a[:6], b[:6]).size / 6 for a, b in zip(*order.values(), strict=True)]
    assert float(neighbor_overlap(x, y, k=6)) == pytest.approx(np.mean(shared), abs=1e-10)
    for k in (1, 4):
        ranks = [
            np.where(order["y"][i] == j)[0][0] + 1 for i in range(n) for j in order["x"][i][:k]
        ]
        found = information_imbalance(x, y, k)
        assert float(found[0]) == pytest.approx(2 * np.mean(ranks) / n, abs=1e-10)
        assert float(found[1]) == pytest.approx(float(information_imbalance(y, x, k)[0]), abs=0)


def test_overlap_and_imbalance_are_those_of_dadapy():
    """Made by running DADApy 0.3.4 on the same rows; see the fixture."""
    rng = np.random.RandomState(0)
    rng.standard_normal((400, 120)), rng.standard_normal((60, 1, 24))
    rng.standard_normal((60, 5, 24))
    p = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 10))
    q = np.tanh(p @ rng.standard_normal((10, 7))) + 0.1 * rng.standard_normal((300, 7))
    assert [p.sum(), (p**2).sum()] == pytest.approx(GOLDEN["checksums"]["p"], rel=1e-10)
    x, y, golden = torch.from_numpy(p), torch.from_numpy(q), GOLDEN["dadapy"]
    assert float(neighbor_overlap(x, y, k=30)) == pytest.approx(
        golden["neighbor_overlap"], abs=1e-10
    )
    for k, name in ((1, "information_imbalance"), (5, "information_imbalance_5")):
        assert information_imbalance(x, y, k).tolist() == pytest.approx(golden[name], abs=1e-10)


def test_gap_is_the_distance_of_the_centres():
    x, y = pair(30, 4, 4)
    units = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
    expected = (units[0].mean(dim=0) - units[1].mean(dim=0)).norm()
    assert float(modality_gap(x, y[:20])) == pytest.approx(
        float((units[0].mean(dim=0) - units[1][:20].mean(dim=0)).norm()), abs=1e-10
    )
    assert float(modality_gap(x, 7 * y)) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("name", ["cka", "neighbor_overlap", "information_imbalance"])
def test_rows_that_are_no_pairs(name):
    measure = getattr(functional, name)
    with pytest.raises(ValueError, match="y must have a row for each of x, 20, got 19"):
        measure(torch.randn(20, 3), torch.randn(19, 3))
    with pytest.raises(ValueError, match="y must be finite"):
        measure(torch.randn(20, 3), torch.full((20, 3), torch.nan))
    with pytest.raises(ValueError, match="x must have at least"):
        measure(torch.randn(1, 3), torch.randn(1, 3))


def test_widths_and_neighbours_out_of_range():
    with pytest.raises(ValueError, match="y must have the width of x, 3, got 2"):
        modality_gap(torch.randn(5, 3), torch.randn(5, 2))
    for measure in (neighbor_overlap, information_imbalance):
        with pytest.raises(ValueError, match="k must be between 1"):
            measure(torch.randn(5, 3), torch.randn(5, 3), k=5)
