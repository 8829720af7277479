"""The sample of a stream is the same for any sharding, order of merges and dtype of the copy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightly_collapse.metrics import LocalIntrinsicDimension, Spectrum, TwoNN
from lightly_collapse.metrics._reservoir import row_draws

ROWS = 60
MASK = 2**64 - 1


def rows(n=ROWS, d=5, dtype=torch.float32):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return z * torch.logspace(0, -2, d) + 10


def splitmix64(x):
    """The mixing function in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


@given(number=st.integers(0, 2**62), seed=st.integers(0, 2**31))
def test_draw_of_a_row_number_in_plain_integers(number, seed):
    golden = 0x9E3779B97F4A7C15
    salt = splitmix64((seed + 1) * golden & MASK)
    expected = splitmix64(splitmix64((number * golden + salt) & MASK) ^ salt)
    found = row_draws(torch.zeros(1, 3), torch.tensor([number]), seed)
    assert int(found) % 2**64 == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 4, 7])
def test_different_rows_draw_different_numbers_spread_evenly(dtype, d):
    z = torch.randn(4000, d, generator=torch.Generator().manual_seed(1)).to(dtype).unique(dim=0)
    draws = row_draws(z)
    assert len(draws.unique()) == len(z)
    for shift in (0, 17, 40, 60):  # any bits are uniform: chi-squared over 16 cells
        counts = ((draws >> shift) & 15).bincount(minlength=16)
        assert ((counts - len(z) / 16) ** 2 / (len(z) / 16)).sum() < 50
    assert not torch.equal(row_draws(z, seed=1), draws)


def test_draws_depend_on_the_order_of_entries_and_not_on_batches_or_copies():
    z = rows(3000, 6)
    draws = row_draws(z)
    assert torch.equal(torch.cat([row_draws(part) for part in z.split(7)]), draws)
    assert not (row_draws(z.flip(1)) == draws).any()
    assert torch.equal(row_draws(z.half()), row_draws(z.half().float()))
    assert torch.equal(
        row_draws(torch.tensor([[0.0, 1.0]])), row_draws(torch.tensor([[-0.0, 1.0]]))
    )


def merged(make, shards, order, numbers):
    """One metric of all shards, merged pairwise in the order drawn."""
    metrics = []
    for shard in shards:
        metric = make()
        if len(shard):
            extra = (shard,) if numbers else ()
            metric.update(rows()[shard], *extra)
        metrics.append(metric)
    for i in order:
        if len(metrics) == 1:
            break
        metric = metrics.pop(i % len(metrics))
        metrics[i % len(metrics)].merge_state(metric)
    for metric in metrics[1:]:
        metrics[0].merge_state(metric)
    return metrics[0]


@given(
    shard_of=st.lists(st.integers(0, 6), min_size=ROWS, max_size=ROWS),
    order=st.lists(st.integers(0, 100), max_size=8),
    numbers=st.booleans(),
)
def test_any_sharding_gives_the_same_sample_and_spectrum(shard_of, order, numbers):
    shards = [
        torch.tensor([i for i in range(ROWS) if shard_of[i] == s], dtype=torch.int64)
        for s in range(7)
    ]
    extra = (torch.arange(ROWS),) if numbers else ()
    for make in (lambda: TwoNN(size=20), lambda: LocalIntrinsicDimension(k=5, size=30)):
        whole = make()
        whole.update(rows(), *extra)
        one = merged(make, shards, order, numbers)
        assert torch.equal(one.sample, whole.sample)
        assert one.compute() == whole.compute()
        assert one.rows == ROWS

    def spectrum():
        return Spectrum(center=True).set_dtype(torch.float64)

    whole = spectrum()
    whole.update(rows())
    one = merged(spectrum, shards, order, False)
    torch.testing.assert_close(one.compute(), whole.compute(), rtol=1e-9, atol=0)


def test_one_row_a_shard_and_rows_that_are_dropped():
    z = rows()
    z[7, 2] = torch.nan
    whole = TwoNN(size=20, nan_strategy="drop")
    whole.update(z, torch.arange(ROWS))
    one = TwoNN(size=20, nan_strategy="drop")
    for i in torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)):
        other = TwoNN(size=20, nan_strategy="drop")
        other.update(z[i][None], i[None])
        one.merge_state(other)
    assert torch.equal(one.sample, whole.sample)
    assert [int(one.rows), int(one.dropped)] == [ROWS - 1, 1]


def test_copies_of_a_row_are_sampled_by_their_numbers():
    z = torch.cat([torch.zeros(500, 2), torch.ones(500, 2)])
    metric = TwoNN(size=100)
    metric.update(z, torch.arange(1000))
    assert 30 < metric.sample[:, 0].sum() < 70


@pytest.mark.parametrize("numbers", [torch.arange(4), torch.zeros(5), torch.zeros(5, 1).long()])
def test_wrong_numbers(numbers):
    with pytest.raises(ValueError, match=r"numbers must be \(5,\) int64, one a row, got"):
        TwoNN().update(rows(5), numbers)
