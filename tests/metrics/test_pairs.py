"""The metrics of pairs are the functions of all rows, however the rows are sharded."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightly_collapse import functional
from lightly_collapse.metrics import CKA, InformationImbalance, ModalityGap, NeighborOverlap


def double(metric):
    metric.set_dtype(torch.float64)
    return metric


def pair(n=50, d=6, e=4):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) + 100
    return x, x[:, :e].sin() * 3 + torch.randn(n, e, generator=g, dtype=torch.float64)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=8), order=st.randoms(use_true_random=False))
def test_cka_for_any_sharding(cuts, order):
    x, y = pair()
    ends = [0, *sorted(cuts), len(x)]
    shards = []
    for low, high in pairwise(ends):
        shards.append(double(CKA()))
        if high > low:
            shards[-1].update(x[low:high], y[low:high])
    while len(shards) > 1:
        order.shuffle(shards)
        shards[0].merge_states([shards.pop().tensor_states()])
    expected = float(functional.cka(x, y))
    assert float(shards[0].compute()) == pytest.approx(expected, abs=1e-9)


def test_one_row_a_batch():
    x, y = pair(20)
    metric = double(CKA())
    for one, other in zip(x.split(1), y.split(1), strict=True):
        metric.update(one, other)
    assert float(metric.compute()) == pytest.approx(float(functional.cka(x, y)), abs=1e-10)
    biased = double(CKA(debiased=False))
    assert float(biased(x, y)) == pytest.approx(float(functional.cka(x, y, False)), abs=1e-10)


@pytest.mark.parametrize("kind", [NeighborOverlap, InformationImbalance])
def test_sampled_pairs(kind):
    x, y = pair()
    function = {
        NeighborOverlap: functional.neighbor_overlap,
        InformationImbalance: functional.information_imbalance,
    }[kind]
    whole, one, other = double(kind(k=3)), double(kind(k=3)), double(kind(k=3))
    whole.update(x, y)
    one.update(x[:15], y[:15])
    other.update(x[15:], y[15:])
    one.merge_state(other)
    assert torch.equal(whole.compute(), function(x, y, k=3))
    assert torch.equal(one.compute(), whole.compute())
    few = kind(k=3, size=20)
    few.update(x, y)
    assert few.rows_used == 20


def test_gap_of_batches():
    x, y = pair(e=6)
    one, other = double(ModalityGap()), double(ModalityGap())
    one.update(x[:15], y[:15])
    other.update(x[15:], y[15:])
    one.merge_state(other)
    assert float(one.compute()) == pytest.approx(float(functional.modality_gap(x, y)), abs=1e-10)


def test_pairs_with_nan_are_dropped_and_counted():
    x, y = pair()
    broken = y.clone()
    broken[[3, 8], 1] = torch.nan
    kept = [i for i in range(len(x)) if i not in (3, 8)]
    metric = double(CKA(nan_strategy="drop"))
    metric.update(x, broken)
    assert int(metric.dropped) == 2
    assert float(metric.compute()) == pytest.approx(
        float(functional.cka(x[kept], y[kept])), abs=1e-10
    )
    with pytest.raises(ValueError, match="x and y must be finite"):
        CKA().update(x, broken)


@pytest.mark.parametrize("kind", [CKA, NeighborOverlap, InformationImbalance, ModalityGap])
def test_wrong_pairs(kind):
    metric = kind()
    with pytest.raises(ValueError, match=r"y must have the shape of x|x and y must be 2-D"):
        metric.update(torch.randn(5, 3), torch.randn(4, 3))
    metric.update(torch.randn(9, 3), torch.randn(9, 3))
    with pytest.raises(ValueError, match=r"must have 3 columns|must have 6 columns"):
        metric.update(torch.randn(5, 2), torch.randn(5, 2))


def test_too_few_rows():
    metric = CKA()
    metric.update(torch.randn(3, 2), torch.randn(3, 2))
    with pytest.raises(ValueError, match="needs at least 4 rows, got 3"):
        metric.compute()
