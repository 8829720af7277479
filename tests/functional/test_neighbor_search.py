"""The neighbour search: candidates by products must lose to nothing computed from differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lightly_collapse.functional import neighbors
from lightly_collapse.functional.neighbors import nearest_neighbors, neighbor_distances

GENERATOR = torch.Generator().manual_seed(0)
CLOUD = torch.randn(400, 48, generator=GENERATOR)
CENTRES = torch.randn(20, 48, generator=GENERATOR)


def by_differences(x: Tensor, reference: Tensor, k: int, own: Tensor | None) -> Tensor:
    # Float64 differences of the float32 points, row by row.
    rows = []
    for i, row in enumerate(x.double()):
        distances = (row - reference.double()).norm(dim=1)
        if own is not None:
            distances[own[i]] = torch.inf
        rows.append(distances.sort().values[:k])
    return torch.stack(rows)


DATA = {
    "cloud": CLOUD,
    "far from the origin": CLOUD + 1000,
    "clusters": CENTRES.repeat(20, 1) + 1e-6 * CLOUD,
    "loose clusters": CENTRES.repeat(20, 1) + 1e-2 * CLOUD,
    "duplicates": CENTRES.repeat(20, 1),
    "one point": CLOUD[:1].repeat(400, 1),
    "outlier": torch.cat([CLOUD[:399], torch.full((1, 48), 1e8)]),
    "line": CLOUD[:, :1],
    "grid": CLOUD[:, :2].mul(4).round(),
    "tiny": CLOUD * 1e-30,
    "huge": CLOUD * 1e34,
}


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("name", DATA)
def test_exact(name: str, precision: str) -> None:
    x, own = DATA[name], torch.arange(400)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        distances, rows = nearest_neighbors(x, x, 25, own)
    finally:
        torch.set_float32_matmul_precision(before)
    truth = by_differences(x, x, 25, own)
    torch.testing.assert_close(distances.double(), truth, rtol=1e-6, atol=0)
    assert not (rows == own[:, None]).any()
    assert all(len(row.unique()) == 25 for row in rows)
    chosen = (x[:, None].double() - x[rows].double()).norm(dim=2)
    torch.testing.assert_close(chosen, truth, rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    m=st.integers(2, 60),
    d=st.integers(1, 6),
    levels=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_exact_among_ties(n, m, d, levels, dtype, seed, data) -> None:  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (n, d), generator=g).to(dtype)
    reference = torch.randint(levels, (m, d), generator=g).to(dtype)
    k = data.draw(st.integers(1, m))
    distances, _ = nearest_neighbors(x, reference, k)
    torch.testing.assert_close(
        distances.double(), by_differences(x, reference, k, None), rtol=1e-6, atol=0
    )


def test_usual_data_needs_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the first pass was certain")

    monkeypatch.setattr(neighbors, "_by_double_products", fail)
    monkeypatch.setattr(neighbors, "_by_differences", fail)
    nearest_neighbors(CLOUD, CLOUD, 25, torch.arange(400))


def test_float64_products_settle_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("float64 was certain")

    monkeypatch.setattr(neighbors, "_by_differences", fail)
    x = DATA["loose clusters"]
    distances, _ = nearest_neighbors(x, x, 10, torch.arange(400))
    truth = by_differences(x, x, 10, torch.arange(400))
    torch.testing.assert_close(distances.double(), truth, rtol=1e-6, atol=0)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.arange(400)
    whole = nearest_neighbors(CLOUD, CLOUD, 7, own)
    monkeypatch.setattr(neighbors, "_PRODUCT_BYTES", 400 * 4 * 3)
    monkeypatch.setattr(neighbors, "_GATHER_BYTES", 1)
    chunked = nearest_neighbors(CLOUD, CLOUD, 7, own)
    torch.testing.assert_close(chunked[0], whole[0], rtol=1e-6, atol=0)
    assert torch.equal(chunked[1], whole[1])


def test_an_error_in_the_product_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Products in bfloat16 choose wrong candidates here: only the bound can tell.
    monkeypatch.setattr(neighbors, "_factor_rounding", lambda _: 2.0**-7)
    addmm = torch.addmm

    def coarse(a: Tensor, x: Tensor, y: Tensor, *, alpha: float, out: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            x, y = x.bfloat16().float(), y.bfloat16().float()
        return addmm(a, x, y, alpha=alpha, out=out)

    monkeypatch.setattr(torch, "addmm", coarse)
    x, own = DATA["loose clusters"], torch.arange(400)
    distances, _ = nearest_neighbors(x, x, 10, own)
    truth = by_differences(x, x, 10, own)
    torch.testing.assert_close(distances.double(), truth, rtol=1e-6, atol=0)


def test_both_derivatives() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, generator=GENERATOR, requires_grad=True)
    reference = torch.randn(9, 3, dtype=torch.float64, generator=GENERATOR)
    reference[4] = x[2].detach()  # at a distance of zero
    for k in (3, 9):
        assert gradcheck(lambda x, k=k: neighbor_distances(x[:2], reference, k), x)
        assert gradgradcheck(lambda x, k=k: neighbor_distances(x[:2], reference, k), x)
        (gradient,) = torch.autograd.grad(
            neighbor_distances(x, reference, k).sum(), x, create_graph=True
        )
        gradient.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
