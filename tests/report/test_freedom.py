"""Degrees of freedom of a jackknife, from the influence of rows on a measure."""

import math

import pytest
import torch

from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.report.freedom import (
    SPECTRAL,
    UNCENTRED,
    degrees_of_freedom,
    excess_kurtosis,
)
from lightly_collapse.report.intervals import estimates_of, jackknife_interval


def rows(n=1500, width=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, width, generator=g, dtype=torch.float64)
    return z * torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize("name", SPECTRAL)
def test_influence_is_what_a_row_more_changes(name):
    x = rows(400) + 0.5

    def measure(z):
        return SPECTRAL[name](torch.linalg.svdvals(z if name in UNCENTRED else z - z.mean(dim=0)))

    whole = measure(x)
    left = [measure(torch.cat([x[:i], x[i + 1 :]])) for i in range(len(x))]
    changes = [float(whole - value) for value in left]
    change = torch.tensor(changes, dtype=torch.float64)
    change -= change.mean()
    expected = float(change.pow(4).mean() / change.square().mean() ** 2) - 3
    assert excess_kurtosis(x)[name] == pytest.approx(expected, rel=0.1)


def test_neither_scale_nor_directions_nor_place_of_the_rows_count():
    x = rows()
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    turned, moved = excess_kurtosis(1e200 * x @ q), excess_kurtosis(x @ q + 5)
    for name, value in excess_kurtosis(x).items():
        assert turned[name] == pytest.approx(value, rel=1e-6), name
        if name not in UNCENTRED:
            assert moved[name] == pytest.approx(value, rel=1e-6), name


def test_of_two_directions_in_closed_form():
    # 1 / PR is (1 + r) / 2 with r = ((a - b) / (a + b))^2: the influence is c (x^2 / a - y^2 / b).
    x = rows()[:, :2]
    y = x - x.mean(dim=0)
    y = y @ torch.linalg.eigh(y.T @ y)[1]
    influence = y[:, 0].square() / y[:, 0].square().mean()
    influence = influence - y[:, 1].square() / y[:, 1].square().mean()
    expected = float(influence.pow(4).mean() / influence.square().mean() ** 2) - 3
    for name in ("participation_ratio", "effective_rank", "condition_number"):
        assert excess_kurtosis(x)[name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("x", [torch.ones(50, 4), torch.zeros(2, 3), torch.tensor([[1.0], [2.0]])])
def test_rows_that_determine_nothing(x):
    assert excess_kurtosis(x) == {}


def test_rows_of_less_dimensions():
    x = rows()
    flat = torch.cat([x, x.new_zeros(len(x), 3)], dim=1)
    assert excess_kurtosis(flat) == pytest.approx(excess_kurtosis(x), rel=1e-6)


def test_freedom():
    assert degrees_of_freedom(20, 1e9, 50.0) == pytest.approx(19)
    assert degrees_of_freedom(20, 10.0, -1.0) == 19
    values = [degrees_of_freedom(20, 10.0, excess) for excess in (0.0, 1.0, 10.0, 1e9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 1


def test_variance_of_the_variance_of_exponential_numbers():
    # Blocks of one row, kurtosis 9: s^2 of n such numbers varies by 2 / df with df of O'Neill.
    n, repeats = 20, 40_000
    g = torch.Generator().manual_seed(0)
    z = torch.empty(repeats, n, dtype=torch.float64).exponential_(generator=g)
    freedom = 2 * n / (6 + 2 * n / (n - 1))
    assert float(z.var(dim=1).var()) == pytest.approx(2 / freedom, rel=0.05)
    assert degrees_of_freedom(n, 3.0, 6.0) == pytest.approx(freedom)


def test_intervals_are_wider_where_few_rows_are_independent_or_decide():
    def width(x, **keywords):
        sketch = EmbeddingSketch(blocks=20)
        sketch.update(x)
        ends = estimates_of(sketch, sketch.compute().scalars, **keywords)[0]["effective_rank"]
        left = [v["effective_rank"] for v in sketch.leave_one_out()]
        plain = jackknife_interval(sketch.compute().scalars["effective_rank"], left, True)
        return math.log(ends.high / ends.low) / math.log(plain.high / plain.low)

    x = rows(800)
    assert 1 < width(x) < 1.06
    assert width(x**5) > 1.2
    assert width(x) < width(x, independent=80)
