"""The sketch of a table of embeddings: one result for any sharding, blocks that change nothing."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightly_collapse import functional
from lightly_collapse.metrics import EmbeddingSketch, LayerMetrics, NeighborDistances

ROWS = 80


def rows(n=ROWS, d=5):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (z * torch.logspace(0, -2, d) + 3).float()


def sketch(blocks=1):
    return EmbeddingSketch(rtol=1e-2, lid_k=6, lid_size=50, blocks=blocks)


def close(one, other):
    assert one.scalars.keys() == other.scalars.keys()
    assert one.problems == other.problems
    for name, value in one.scalars.items():
        assert value == pytest.approx(other.scalars[name], rel=1e-9, nan_ok=True), name
    torch.testing.assert_close(one.spectrum, other.spectrum, rtol=1e-9, atol=0)
    assert torch.equal(one.lid, other.lid)


@given(
    shard_of=st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS),
    order=st.lists(st.integers(0, 100), max_size=6),
    numbers=st.booleans(),
    blocks=st.sampled_from([1, 4]),
)
@settings(max_examples=15)
def test_any_sharding_gives_one_reading(shard_of, order, numbers, blocks):
    z, every = rows(), torch.arange(ROWS)
    sketches = []
    for s in range(6):
        one, index = sketch(blocks), [i for i in range(ROWS) if shard_of[i] == s]
        if index:
            one.update(z[index], every[index] if numbers else None)
        sketches.append(pickle.loads(pickle.dumps(one)))
    for i in order:
        if len(sketches) > 1:
            one = sketches.pop(i % len(sketches))
            sketches[i % len(sketches)].merge(one)
    for one in sketches[1:]:
        sketches[0].merge(one)
    whole = sketch()
    whole.update(z, every if numbers else None)
    close(sketches[0].compute(), whole.compute())
    assert sketches[0].rows == ROWS


def test_reading_is_that_of_layer_metrics():
    layer = LayerMetrics(rtol=1e-2, lid_k=6, lid_size=50).double()
    one = sketch(blocks=5)
    z = rows()
    z[3, 1] = torch.nan
    for part in z.split(17):
        layer.update(part)
        one.update(part)
    close(one.compute(), layer.double().compute())
    assert (one.rows, one.dropped) == (ROWS - 1, 1)


def test_spectrum_is_that_of_the_centred_rows_in_float64():
    whole = sketch(blocks=4)
    whole.update(rows())
    z = rows().double()
    expected = torch.linalg.svdvals(z - z.mean(dim=0))
    torch.testing.assert_close(whole.spectrum(), expected, rtol=1e-9, atol=0)


def test_leave_one_out_is_the_rows_without_a_block():
    one = sketch(blocks=4)
    z = rows()
    one.update(z, torch.arange(ROWS))
    left_out = one.leave_one_out()
    assert len(left_out) == 4
    assert sum(ROWS - values["rows"] for values in left_out) == ROWS
    ranks = sorted(values["rankme"] for values in left_out)
    assert ranks[0] < functional.rankme(z.double()) < ranks[-1]
    assert sketch().leave_one_out() == []


def test_wide_rows_get_fewer_blocks(monkeypatch):
    monkeypatch.setattr("lightly_collapse.metrics.sketch._BLOCK_BYTES", 15 * 8 * 25)
    one = sketch(blocks=20)
    one.update(rows())
    assert len(one.leave_one_out()) == 15
    monkeypatch.setattr("lightly_collapse.metrics.sketch._BLOCK_BYTES", 9 * 8 * 25)
    one = sketch(blocks=20)
    one.update(rows())
    assert one.leave_one_out() == []


def test_wrong_settings_and_widths():
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        EmbeddingSketch(blocks=0)
    with pytest.raises(ValueError, match="must have one setting"):
        sketch().merge(EmbeddingSketch(lid_k=7))
    one, other = sketch(), sketch()
    one.update(rows())
    other.update(rows(d=4))
    with pytest.raises(ValueError, match="one width in all that is merged"):
        one.merge(other)
    with pytest.raises(ValueError, match="5 columns"):
        one.update(rows(d=4))


@pytest.mark.parametrize("cut", [1, 7, 40, 200])
def test_neighbours_in_all_rows_are_exact(cut):
    z = rows(200)
    parts = [NeighborDistances(z[:30], k=6) for _ in range(3)]
    for i, part in enumerate(z.split(cut)):
        parts[i % 3].update(part)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    every = torch.cdist(z[:30].double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(
        parts[2].distances(), every.sort(dim=1).values[:, 1:7], rtol=1e-9, atol=0
    )
    torch.testing.assert_close(
        parts[2].lid(), functional.lid_mom(z.double(), k=6)[:30], rtol=1e-9, atol=0
    )


def test_neighbours_among_too_few_rows():
    near = NeighborDistances(rows(5), k=5)
    near.update(rows(5))
    with pytest.raises(ValueError, match="k must be below the number of rows seen, 5, got 5"):
        near.lid()
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        NeighborDistances(rows(5), k=0)
    with pytest.raises(ValueError, match="reference must have the width of x, 5, got 4"):
        near.update(rows(5, d=4))
