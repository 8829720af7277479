"""TwoNN, LID and DANCo against scikit-dimension's values, TwoNN on known manifolds."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightly_collapse.functional import danco, lid_mle, lid_mom, two_nn
from lightly_collapse.functional.two_nn import two_nn_of_distances

GOLDEN = np.load(Path(__file__).parents[1] / "fixtures" / "intrinsic_dimension.npz")
X = torch.from_numpy(GOLDEN["X"])


def test_two_nn_is_scikit_dimension_s():
    assert float(two_nn(X)) == pytest.approx(float(GOLDEN["twonn"]), rel=1e-6)


def test_lid_mle_is_scikit_dimension_s_after_its_divisor_and_mean():
    k = 20
    pointwise = lid_mle(X, k=k) * (k - 1) / k
    harmonic = 1 / (1 / pointwise).mean()
    assert float(harmonic) == pytest.approx(float(GOLDEN["mle_k20"]), rel=1e-6)


def test_lid_mom_is_scikit_dimension_s_after_its_mean():
    k = 20
    mean_of_all_k = (k * lid_mom(X, k=k) + 1) / (k - 1)
    torch.testing.assert_close(
        mean_of_all_k, torch.from_numpy(GOLDEN["mom_pw_k20"]), rtol=1e-6, atol=0
    )


@pytest.mark.slow
def test_danco_is_scikit_dimension_s():
    assert danco(X, k=10) == pytest.approx(float(GOLDEN["danco_k10"]), abs=0.5)


def test_danco_without_scikit_dimension_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(ImportError, match=r"pip install 'lightly-collapse\[intrinsic-dimension\]'"):
        danco(X)


def test_two_nn_fits_the_line_worked_out_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    # r1, r2: 0 -> 1, 3; 1 -> 1, 2; 3 -> 2, 3; 7 -> 4, 6. Ratios 3, 2, 1.5, 1.5.
    kept = [1.5, 1.5]  # floor(4 * (1 - 0.5)) of them
    log_mu = [math.log(m) for m in kept]
    y = [-math.log(1 - 1 / 4), -math.log(1 - 2 / 4)]
    slope = sum(a * b for a, b in zip(log_mu, y, strict=True)) / sum(a * a for a in log_mu)
    assert float(two_nn(x, discard_fraction=0.5)) == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_of_a_cube_embedded_in_many_dimensions(dimension):
    g = torch.Generator().manual_seed(dimension)
    cube = torch.rand(3000, dimension, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64)).Q[:dimension]
    assert float(two_nn(cube @ rotation)) == pytest.approx(dimension, rel=0.1)


def test_two_nn_leaves_duplicates_out():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(500, 3, generator=g, dtype=torch.float64)
    pair = torch.full((2, 3), 9.0, dtype=torch.float64)
    assert float(two_nn(torch.cat([x, pair]))) == pytest.approx(float(two_nn(x)), rel=1e-9)


def test_two_nn_is_float32_for_half_input():
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    assert two_nn(x.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "discard_fraction", "message"),
    [
        (torch.zeros(2, 3), 0.1, "x must have at least 3 row"),
        (torch.zeros(9, 3), 0.1, "9 have a duplicate"),
        (torch.tensor([[0.0], [1.0], [2.0], [float("nan")]]), 0.1, "x must be finite"),
        (torch.rand(9, 3), 0.0, "discard_fraction must be between 0 and 1"),
        (torch.rand(9, 3), 1.0, "discard_fraction must be between 0 and 1"),
        (torch.eye(6), 0.1, "nearest distances equal"),
    ],
)
def test_two_nn_says_what_is_wrong(x, discard_fraction, message):
    with pytest.raises(ValueError, match=message):
        two_nn(x, discard_fraction=discard_fraction)


@pytest.mark.parametrize("n", [30, 100])
def test_corrected_fit_has_less_bias(n):
    g = torch.Generator().manual_seed(0)
    plain, corrected = [], []
    for _ in range(400):
        ratio = torch.empty(n, dtype=torch.float64).exponential_(5.0, generator=g).exp()
        r = torch.stack([torch.ones_like(ratio), ratio], dim=1)
        plain.append(float(two_nn_of_distances(r)))
        corrected.append(float(two_nn_of_distances(r, corrected=True)))
    bias = [sum(v) / len(v) / 5 - 1 for v in (plain, corrected)]
    assert abs(bias[1]) < abs(bias[0]) / 2
