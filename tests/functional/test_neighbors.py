import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightly_collapse.functional.neighbors import nearest_neighbors, neighbor_distances
from tests.helpers import dtypes, gradient, leaf, normal, seeds


def all_distances(x: Tensor, reference: Tensor) -> np.ndarray:
    """Every distance in float64, from differences."""
    a, b = x.detach().double().numpy(), reference.detach().double().numpy()
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))


def by_hand(x: Tensor, reference: Tensor, k: int, own: bool = False) -> Tensor:
    distances = all_distances(x, reference)
    if own:
        np.fill_diagonal(distances, np.inf)
    return torch.from_numpy(np.sort(distances, axis=1)[:, :k].copy())


@pytest.mark.parametrize(("n", "m", "d"), [(30, 50, 8), (50, 30, 1), (1, 20, 64), (65, 700, 3)])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_distances_and_rows_are_those_of_brute_force(n: int, m: int, d: int, k: int) -> None:
    x, reference = normal(n, d, seed=8), normal(m, d, seed=9)
    distances, rows = nearest_neighbors(x, reference, k)
    torch.testing.assert_close(distances, by_hand(x, reference, k))
    assert rows.dtype == torch.int64
    gathered = np.take_along_axis(all_distances(x, reference), rows.numpy(), axis=1)
    torch.testing.assert_close(torch.from_numpy(gathered), distances)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_as_many_rows_as_a_real_batch() -> None:
    x = normal(4100, 2, seed=10, dtype=torch.float32)
    distances, _ = nearest_neighbors(x, x, 3, torch.arange(4100))
    sample = torch.arange(0, 4100, 41)
    torch.testing.assert_close(
        distances[sample], by_hand(x[sample], x, 4)[:, 1:].float(), rtol=1e-4, atol=1e-7
    )


def test_oneself_is_left_out_by_index_and_duplicates_stay() -> None:
    x = normal(10, 4, seed=11).repeat(3, 1)
    own = torch.arange(30)
    distances, rows = nearest_neighbors(x, x, 2, own)
    assert (distances == 0).all()
    assert (rows != own[:, None]).all()
    assert (rows % 10 == own[:, None] % 10).all()
    distances, _ = nearest_neighbors(x, x, 5, own)
    torch.testing.assert_close(distances, by_hand(x, x, 5, own=True))


def test_exclude_may_name_any_row() -> None:
    x, reference = normal(6, 3, seed=12), normal(9, 3, seed=13)
    exclude = torch.tensor([8, 0, 0, 3, 5, 7])
    _, rows = nearest_neighbors(x, reference, 8, exclude)
    assert [sorted({*range(9)} - {*row})[0] for row in rows.tolist()] == exclude.tolist()


def test_all_rows_equal() -> None:
    x = leaf(torch.full((12, 5), 7.0))
    distances = neighbor_distances(x, x.detach(), 4, torch.arange(12))
    assert (distances == 0).all()
    assert (gradient(distances.sum(), x) == 0).all()


@pytest.mark.parametrize("apart", [1e-3, 1e-5])
@pytest.mark.parametrize("outlier", [1, 1e4])
def test_rows_that_nearly_coincide_keep_their_distance(apart: float, outlier: float) -> None:
    x = normal(40, 16, seed=14, dtype=torch.float32)
    both = torch.cat([x, x + apart * normal(40, 16, seed=15, dtype=torch.float32)])
    both[0] *= outlier
    distances, _ = nearest_neighbors(both, both, 1, torch.arange(80))
    torch.testing.assert_close(
        distances, by_hand(both, both, 1, own=True).float(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_mean_a_thousand_times_the_spread(offset: float) -> None:
    x = leaf(normal(60, 8, seed=16, dtype=torch.float32) + offset)
    own = torch.arange(60)
    distances = neighbor_distances(x, x.detach(), 6, own)
    torch.testing.assert_close(distances, by_hand(x, x, 6, own=True).float(), rtol=1e-4, atol=0)
    exact = leaf(x.detach().double())
    slope = gradient(neighbor_distances(exact, exact.detach(), 6, own).log().sum(), exact)
    torch.testing.assert_close(
        gradient(distances.log().sum(), x), slope.float(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_squares_neither_underflow_nor_overflow(scale: float) -> None:
    x = normal(40, 8, seed=17, dtype=torch.float32)
    scaled = leaf(scale * x)
    distances = neighbor_distances(scaled, scaled.detach(), 5, torch.arange(40))
    exact = by_hand(scaled, scaled, 5, own=True)
    torch.testing.assert_close(distances / scale, (exact / scale).float(), rtol=1e-5, atol=0)
    # |d r / d x| = 1 whatever the scale
    plain = leaf(x)
    torch.testing.assert_close(
        gradient(distances.sum(), scaled),
        gradient(neighbor_distances(plain, plain.detach(), 5, torch.arange(40)).sum(), plain),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("own", [False, True])
def test_gradient_is_that_of_the_plain_formula(k: int, own: bool) -> None:
    x = leaf(normal(20, 6, seed=18))
    reference = x.detach() if own else normal(25, 6, seed=19)
    exclude = torch.arange(20) if own else None
    weights = normal(20, k, seed=20)
    slope = gradient((weights * neighbor_distances(x, reference, k, exclude)).sum(), x)
    _, rows = nearest_neighbors(x, reference, k, exclude)
    plain = (x[:, None] - reference[rows]).norm(dim=-1)
    torch.testing.assert_close(slope, gradient((weights * plain).sum(), x))


def test_gradcheck() -> None:
    x, reference = leaf(normal(7, 3, seed=21)), normal(12, 3, seed=22)
    assert torch.autograd.gradcheck(lambda x: neighbor_distances(x, reference, 4), (x,))


def test_no_gradient_reaches_the_reference() -> None:
    x, reference = leaf(normal(5, 3)), leaf(normal(8, 3, seed=1))
    neighbor_distances(x, reference, 2).sum().backward()
    assert reference.grad is None


def test_query_equal_to_a_reference_row_gets_no_gradient_from_it() -> None:
    reference = normal(8, 3)
    x = leaf(reference[:4])
    distances = neighbor_distances(x, reference, 1)
    assert (distances == 0).all()
    assert (gradient(distances.sum(), x) == 0).all()


@given(
    n=st.integers(2, 20),
    d=st.integers(1, 12),
    dtype=dtypes,
    log_scale=st.integers(-4, 4),
    seed=seeds,
    data=st.data(),
)
def test_any_shape_dtype_and_scale(
    *, n: int, d: int, dtype: torch.dtype, log_scale: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n - 1), label="k")
    x = leaf((10.0**log_scale * normal(n, d, seed=seed)).to(dtype))
    distances = neighbor_distances(x, x.detach(), k, torch.arange(n))
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (distances.diff(dim=1) >= 0).all()
    torch.testing.assert_close(
        distances.double(), by_hand(x, x, k, own=True), rtol=1e-4, atol=1e-6 * 10.0**log_scale
    )
    assert gradient(distances.sum(), x).isfinite().all()


def test_dtypes_may_differ() -> None:
    x, reference = normal(6, 4), normal(9, 4, seed=1)
    exact, rows = nearest_neighbors(x, reference, 3)
    for a, b in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        y = leaf(x.to(a))
        distances = neighbor_distances(y, reference.to(b), 3)
        torch.testing.assert_close(distances.double(), exact, rtol=1e-5, atol=1e-6)
        assert gradient(distances.sum(), y).dtype == a
        assert torch.equal(nearest_neighbors(y.detach(), reference.to(b), 3)[1], rows)


def test_bfloat16_autocast_changes_nothing() -> None:
    x = normal(20, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = nearest_neighbors(x, x, 4, torch.arange(20))
    outside, _ = nearest_neighbors(x, x, 4, torch.arange(20))
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_bad_input() -> None:
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"^reference must have the width of x, 4, got 5"):
        nearest_neighbors(x, torch.randn(6, 5), 2)
    for k in (0, -1, 7):
        with pytest.raises(ValueError, match=rf"^k must be between 1 and .* 6, got {k}"):
            nearest_neighbors(x, x, k)
    with pytest.raises(ValueError, match=r"^k must be between 1 and .* 5, got 6"):
        neighbor_distances(x, x, 6, torch.arange(6))


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_near_duplicates_keep_their_digits_in_float32(apart: float, offset: float) -> None:
    # Groups of near duplicates, `apart` times the spread of the groups from each other.
    groups = normal(40, 1, 32) + offset
    x = (groups + apart * normal(40, 12, 32, seed=1)).flatten(0, 1).float()
    own = torch.arange(len(x))
    values, slopes = [], []
    for y in (leaf(x), leaf(x.double())):
        r = neighbor_distances(y, y.detach(), 8, own)
        values.append(r.detach().double())
        slopes.append(gradient((r / r[:, -1:].detach()).sum(), y).double())
    torch.testing.assert_close(values[0], values[1], rtol=2e-6, atol=0)
    error = (slopes[0] - slopes[1]).norm(dim=1) / slopes[1].norm(dim=1)
    assert error.max() < 3e-5
