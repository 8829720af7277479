import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightly_collapse.functional import (
    asymptotic_kl_divergence,
    fisher_rao_distance,
    frechet_variance,
    geometric_mean,
    lid_mle,
    lid_mom,
)
from lightly_collapse.functional.intrinsic_dimension import (
    lid_mle_from_distances,
    lid_mom_from_distances,
    mlid_corrected,
)
from tests.helpers import BAD_FEATURES, dtypes, gradient, leaf, normal, orthonormal, seeds

ESTIMATORS = [lid_mom, lid_mle]
FROM_DISTANCES = {lid_mom: lid_mom_from_distances, lid_mle: lid_mle_from_distances}
Estimator = Callable[..., Tensor]


def mom_by_hand(r: np.ndarray) -> np.ndarray:
    m = r[:, :-1].mean(axis=1)
    return np.asarray(m / (r[:, -1] - m))


def mle_by_hand(r: np.ndarray) -> np.ndarray:
    return np.asarray(-1 / np.log(r / r[:, -1:]).mean(axis=1))


BY_HAND = {lid_mom: mom_by_hand, lid_mle: mle_by_hand}


@pytest.mark.parametrize("k", [8, 20, 64])
def test_golden_values(golden, k: int) -> None:  # type: ignore[no-untyped-def]
    values = golden("lid")
    # The official reference begins with the samples themselves, and the first of the sorted
    # distances, oneself, is dropped: by index, the samples' own rows among all of them.
    x, points = values["features"], values["reference"]
    for estimator, name in ((lid_mom, "lid_mom"), (lid_mle, "lid_mle_amsaleg")):
        lid = estimator(points, k=k)[: len(x)]
        torch.testing.assert_close(lid, values[f"{name}_k{k}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [2, 3, 10, 39])
def test_value_is_the_formula_over_brute_force_distances(estimator: Estimator, k: int) -> None:
    x, reference = normal(40, 6, seed=23), normal(50, 6, seed=24)
    for points in (None, reference):
        y = (x if points is None else points).numpy()
        r = np.linalg.norm(x.numpy()[:, None] - y[None], axis=-1)
        if points is None:
            np.fill_diagonal(r, np.inf)
        exact = BY_HAND[estimator](np.sort(r, axis=1)[:, :k])
        torch.testing.assert_close(estimator(x, points, k=k), torch.from_numpy(exact))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_reference_leaves_no_row_out(estimator: Estimator) -> None:
    x = normal(30, 4)
    # With itself as the reference, the nearest neighbour is the sample, at distance zero.
    r = torch.cdist(x, x).fill_diagonal_(0).sort(dim=1).values[:, :6]
    torch.testing.assert_close(
        estimator(x, x, k=6), FROM_DISTANCES[estimator](r), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_recovers_the_dimension_of_a_ball(estimator: Estimator) -> None:
    # Distances r_i = (i / k)^(1 / D) are the quantiles of a D-dimensional ball about its centre.
    for dimension in (1.0, 3.0, 10.0):
        r = (torch.arange(1, 20001).double() / 20000).pow(1 / dimension)[None]
        lid = FROM_DISTANCES[estimator](r).item()
        assert lid == pytest.approx(dimension, rel=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("k", [2, 5])
def test_gradcheck(estimator: Estimator, k: int) -> None:
    x, reference = leaf(normal(8, 3, seed=25)), normal(15, 3, seed=26)
    assert torch.autograd.gradcheck(lambda x: estimator(x, reference, k=k), (x,))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_neighbours_are_constants(estimator: Estimator) -> None:
    x = leaf(normal(30, 5, seed=27))
    slope = gradient(estimator(x, k=7).log().sum(), x)
    r = torch.cdist(x, x.detach()) + torch.diag(torch.full((30,), torch.inf))
    r = r.sort(dim=1).values[:, :7]
    plain = FROM_DISTANCES[estimator](r).log().sum()
    torch.testing.assert_close(slope, gradient(plain, x), rtol=1e-5, atol=1e-8)


@given(
    n=st.integers(4, 24),
    d=st.integers(1, 10),
    seed=seeds,
    scale=st.floats(1e-8, 1e8),
    data=st.data(),
)
def test_invariant_under_scaling_rotation_and_translation(
    n: int, d: int, seed: int, scale: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(2, n - 1), label="k")
    x = normal(n, d, seed=seed)
    moved = scale * (x @ orthonormal(d, d, seed + 1)) + scale * normal(d, seed=seed + 2)
    for estimator in ESTIMATORS:
        torch.testing.assert_close(estimator(moved, k=k), estimator(x, k=k), rtol=1e-6, atol=0)


@given(n=st.integers(3, 20), d=st.integers(1, 10), dtype=dtypes, seed=seeds, data=st.data())
def test_finite_at_any_shape_dtype_and_scale(
    n: int, d: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(2, n - 1), label="k")
    log_scale = data.draw(st.integers(-1, 3) if dtype == torch.float16 else st.integers(-12, 12))
    x = (10.0**log_scale * normal(n, d, seed=seed)).to(dtype)
    x = leaf(x[torch.from_numpy(np.random.default_rng(seed).integers(0, n, n))])  # some rows twice
    for estimator in ESTIMATORS:
        lid = estimator(x, k=k)
        assert lid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (lid.isfinite() & (lid > 0)).all()
        assert gradient(lid.log().mean(), x).isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "x",
    [
        torch.ones(12, 4),
        torch.zeros(12, 4),
        torch.ones(12, 4).index_fill(0, torch.tensor([0]), 2.0),
        torch.eye(12),  # every distance the same
        torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).repeat(2, 1),
    ],
    ids=["ones", "zeros", "one apart", "simplex", "duplicates"],
)
def test_degenerate_rows(estimator: Estimator, dtype: torch.dtype, x: Tensor) -> None:
    for k in (2, 5, 11):
        y = leaf(x.to(dtype))
        lid = estimator(y, k=k)
        eps = torch.finfo(dtype).eps
        assert (lid.isfinite() & (lid >= eps) & (lid <= 1 / eps)).all()
        assert gradient(lid.log().sum(), y).isfinite().all()


def test_limits_of_equal_and_of_zero_distances() -> None:
    eps = torch.finfo(torch.float64).eps
    equal = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    zero = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    for r in (equal, zero, 0 * equal):
        for estimate in FROM_DISTANCES.values():
            assert estimate(r).isfinite().all()
    assert lid_mom_from_distances(equal).item() == pytest.approx(1 / eps)
    assert lid_mle_from_distances(equal).item() == pytest.approx(1 / eps)
    assert lid_mom_from_distances(zero).item() == eps
    assert lid_mle_from_distances(zero).item() == pytest.approx(-1.5 / math.log(eps))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_a_thousand_times_the_spread(estimator: Estimator) -> None:
    x = normal(80, 8, seed=28, dtype=torch.float32) + 1000
    torch.testing.assert_close(
        estimator(x, k=10), estimator(x.double(), k=10).float(), rtol=1e-3, atol=0
    )


def test_duplicates_count_as_neighbours() -> None:
    x = normal(20, 4, seed=29)
    twice = torch.cat([x, x])
    r = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    r = torch.cat([r, r], dim=1).sort(dim=1).values[:, 1:8]  # of two zeros only one is oneself
    torch.testing.assert_close(lid_mom(twice, k=7)[:20], torch.from_numpy(mom_by_hand(r.numpy())))


def test_bfloat16_autocast_changes_nothing() -> None:
    x = normal(30, 6, dtype=torch.float32)
    for estimator in ESTIMATORS:
        with torch.autocast("cpu", torch.bfloat16):
            inside = estimator(x, k=5)
        torch.testing.assert_close(inside, estimator(x, k=5), rtol=0, atol=0)


def test_geometric_mean_and_fisher_rao_distance() -> None:
    lid = torch.tensor([2.0, 8.0, 4.0], dtype=torch.float64)
    assert geometric_mean(lid).item() == pytest.approx(4)
    assert geometric_mean(lid * 3).item() == pytest.approx(12)
    expected = torch.tensor([math.log(2), 0, math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(fisher_rao_distance(lid, lid.flip(0)), expected)
    expected = torch.full((3,), math.log(7), dtype=torch.float64)
    torch.testing.assert_close(fisher_rao_distance(7 * lid, lid), expected)
    assert geometric_mean(lid.half()).dtype == torch.float32


@pytest.mark.parametrize("lid", [[], [1.0, 0.0], [1.0, -2.0], [math.nan], [math.inf]], ids=str)
def test_bad_lid(lid: list[float]) -> None:
    bad, good = torch.tensor(lid), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"^lid must"):
        geometric_mean(bad)
    with pytest.raises(ValueError, match=r"^lid0 must"):
        fisher_rao_distance(bad, good)
    with pytest.raises(ValueError, match=r"^lid1 must"):
        fisher_rao_distance(good, bad)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("features", BAD_FEATURES)
def test_bad_features(estimator: Estimator, features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x must"):
        estimator(features, k=2)
    with pytest.raises(ValueError, match=r"^reference must"):
        estimator(torch.randn(8, 4), features, k=2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_other_bad_arguments(estimator: Estimator) -> None:
    x = torch.randn(8, 4)
    for k in (1, 0, -3):
        with pytest.raises(ValueError, match=r"^k must be at least 2"):
            estimator(x, k=k)
    with pytest.raises(ValueError, match=r"^k must .* 7, got 8"):
        estimator(x, k=8)
    with pytest.raises(ValueError, match=r"^k must .* 8, got 9"):
        estimator(x, x, k=9)
    assert estimator(x, x, k=8).shape == (8,)
    with pytest.raises(ValueError, match=r"^reference must have the width of x, 4, got 3"):
        estimator(x, torch.randn(8, 3), k=2)
    for r in (torch.ones(3), torch.ones(3, 1), torch.ones(1, 3, 4)):
        with pytest.raises(ValueError, match=r"^r must"):
            FROM_DISTANCES[estimator](r)


@given(seed=seeds, n=st.integers(1, 30))
def test_frechet_variance_is_the_mean_squared_distance_from_the_mean(seed: int, n: int) -> None:
    lid = normal(n, seed=seed).exp()
    distance = fisher_rao_distance(lid, geometric_mean(lid))
    torch.testing.assert_close(frechet_variance(lid), distance.square().mean())
    # No other centre is nearer: it is the Fréchet mean.
    for factor in (0.9, 1.1):
        other = fisher_rao_distance(lid, factor * geometric_mean(lid))
        assert other.square().mean() > frechet_variance(lid)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (3.0, 8.0), (8.0, 3.0), (0.5, 20.0)])
def test_asymptotic_kl_is_the_integral(a: float, b: float) -> None:
    # E over r = u^(1/a), u uniform, of ln(a r^(a-1)) - ln(b r^(b-1)), by the midpoint rule.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    log_r = u.log() / a
    exact = (math.log(a / b) + (a - b) * log_r).mean().item()
    found = asymptotic_kl_divergence(torch.tensor(a).double(), torch.tensor(b).double())
    assert found.item() == pytest.approx(exact, abs=1e-4)


@given(a=st.floats(0.1, 100), relative=st.floats(-1e-3, 1e-3))
def test_asymptotic_kl_near_is_half_the_squared_distance(a: float, relative: float) -> None:
    lid0, lid1 = torch.tensor(a).double(), torch.tensor(a * (1 + relative)).double()
    half = fisher_rao_distance(lid0, lid1).square() / 2
    torch.testing.assert_close(asymptotic_kl_divergence(lid0, lid1), half, rtol=1e-3, atol=1e-15)


def test_bad_lids_of_variance_and_divergence() -> None:
    good = torch.ones(3)
    for bad in (torch.tensor([]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match=r"^lid must"):
            frechet_variance(bad)
        with pytest.raises(ValueError, match=r"^lid0 must"):
            asymptotic_kl_divergence(bad, good)
        with pytest.raises(ValueError, match=r"^lid1 must"):
            asymptotic_kl_divergence(good, bad)


@pytest.mark.parametrize(("d", "k"), [(2, 5), (10, 5), (10, 20), (40, 20)])
def test_mlid_corrected_for_few_neighbours(d, k):
    """Distances in a ball of dimension d over the k-th are d-th roots of uniform numbers."""
    g = torch.Generator().manual_seed(0)
    near = torch.rand(20000, k - 1, generator=g, dtype=torch.float64).pow(1 / d).sort(dim=1).values
    r = torch.cat([near, torch.ones(len(near), 1, dtype=torch.float64)], dim=1)
    mlid = float(geometric_mean(lid_mom_from_distances(r)))
    assert abs(mlid_corrected(mlid, k) / d - 1) < abs(mlid / d - 1) / 5 + 2e-3


@pytest.mark.parametrize("mlid", [1e-12, 0.003, 0.5, 1.0])
def test_mlid_corrected_leaves_what_is_no_more_than_a_line(mlid):
    assert mlid_corrected(mlid, 5) == mlid
