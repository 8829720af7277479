"""Streaming spectrum metrics against a float64 SVD of all rows."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from lightly_collapse import functional
from lightly_collapse.functional.spectrum import rankme_of_spectrum
from lightly_collapse.metrics import (
    AlphaReQ,
    CollapsedDimensions,
    ConditionNumber,
    EffectiveRank,
    NESum,
    ParticipationRatio,
    RankMe,
    Spectrum,
    StableRank,
    WassersteinUniformity,
    collapse_metrics,
)

MEASURES = {
    EffectiveRank: functional.effective_rank,
    RankMe: rankme_of_spectrum,
    StableRank: functional.stable_rank,
    ParticipationRatio: functional.participation_ratio,
    NESum: functional.nesum,
    ConditionNumber: functional.condition_number,
    CollapsedDimensions: functional.collapsed_dimensions,
    AlphaReQ: functional.alpha_req,
    Spectrum: lambda s: s,
}
CENTERED = {ParticipationRatio, NESum, ConditionNumber, CollapsedDimensions, AlphaReQ}


def rows(n, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -4, d, dtype=dtype)
    mean = torch.randn(d, generator=g, dtype=dtype)
    return mean + torch.randn(n, d, generator=g, dtype=dtype) * scales


def graded(n, d, mean_over_spread, seed):
    """float32 rows whose spread has singular values from 1 to 1e-6, about a mean."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(n, d, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    z = u * torch.logspace(0, -6, d, dtype=torch.float64) @ v.T * n**0.5
    direction = torch.randn(d, generator=g, dtype=torch.float64)
    return (z + mean_over_spread * direction / direction.norm()).float()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("mean_over_spread", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("d", [16, 200])
def test_singular_values_of_100_float32_batches_within_a_thousandth(d, mean_over_spread, center):
    z = graded(4000, d, mean_over_spread, seed=d)
    metric = Spectrum(center=center)
    for batch in z.chunk(100):
        metric.update(batch)
    exact = z.double()
    expected = torch.linalg.svdvals(exact - exact.mean(dim=0) if center else exact)
    told = expected >= 1e-6 * expected[0]
    assert told.sum() > 2
    relative = (metric.compute().double() / expected - 1).abs()[told]
    assert relative.max() < 1e-3


@pytest.mark.parametrize("metric_class", MEASURES)
@pytest.mark.parametrize("center", [None, False, True])
@pytest.mark.parametrize("n", [5, 300])
def test_metric_is_the_function_of_all_rows(metric_class, center, n):
    z = rows(n, 8)
    metric = metric_class() if center is None else metric_class(center=center)
    metric.set_dtype(torch.float64)
    for batch in z.split(70):
        metric.update(batch)
    centered = metric_class in CENTERED if center is None else center
    s = functional.singular_values(z, center=centered)
    if n == 5 and centered:
        s = torch.cat([s[:-1], torch.zeros(1, dtype=s.dtype)])  # rank 4, by definition
    torch.testing.assert_close(metric.compute(), MEASURES[metric_class](s), rtol=1e-6, atol=1e-7)


@given(
    data=st.data(),
    n=st.integers(2, 40),
    d=st.integers(1, 9),
    center=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_order_and_batches_do_not_matter(data, n, d, center):
    z = rows(n, d, seed=n * 10 + d)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=5)))
    order = data.draw(st.permutations(range(n)))
    metric = Spectrum(center=center)
    metric.set_dtype(torch.float64)
    for batch in z[list(order)].tensor_split(cuts):
        metric.update(batch)
    s = functional.singular_values(z, center=center)
    value = metric.compute().reshape(-1)  # torchmetrics makes one value a scalar
    torch.testing.assert_close(value, s, rtol=1e-6, atol=1e-7 * float(s[0]))


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_merged_metrics_are_one(shift):
    z = rows(90, 6) + shift
    one, other, all_rows = Spectrum(True), Spectrum(True), Spectrum(True)
    one.update(z[:20])
    other.update(z[20:45] + 1.0)
    other.update(z[45:])
    all_rows.update(torch.cat([z[:20], z[20:45] + 1.0, z[45:]]))
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), all_rows.compute(), rtol=1e-6, atol=0)
    assert one.rows == 90


def test_merging_into_an_empty_metric_and_from_one():
    filled, empty = RankMe(), RankMe()
    filled.update(rows(10, 3))
    value = filled.compute()
    filled.merge_state(RankMe())
    empty.merge_state(filled)
    assert filled.compute() == value
    assert empty.compute() == value


def test_forward_gives_the_batch_and_keeps_the_total():
    z = rows(60, 5)
    metric, total = RankMe(), RankMe()
    total.update(z)
    for batch in z.split(20):
        torch.testing.assert_close(metric(batch), functional.rankme(batch).float())
    torch.testing.assert_close(metric.compute(), total.compute())


def test_reset_forgets_rows_and_width():
    metric = RankMe()
    metric.update(rows(10, 5))
    metric.compute()
    metric.reset()
    assert metric.rows == 0
    metric.update(torch.eye(3))
    assert float(metric.compute()) == pytest.approx(3, rel=1e-5)


def test_a_value_already_given_out_stays_and_a_new_one_follows_the_new_rows():
    metric = Spectrum()
    metric.update(torch.eye(2))
    first = metric.compute()
    metric.update(torch.eye(2))
    second = metric.compute()
    torch.testing.assert_close(first, torch.ones(2))
    torch.testing.assert_close(second, torch.full((2,), 2**0.5))


def test_pickle_and_state_dict_go_on_where_they_were():
    z = rows(60, 5)
    metric, expected = RankMe(), RankMe()
    expected.update(z)
    metric.update(z[:30])
    pickled = pickle.loads(pickle.dumps(metric))
    loaded = RankMe()
    loaded.update(rows(7, 9))  # something else, of another width, to be replaced
    loaded.compute()
    loaded.load_state_dict(metric.state_dict())
    assert loaded.compute() == metric.compute()
    for copy in (pickled, loaded):
        copy.update(z[30:])
        torch.testing.assert_close(copy.compute(), expected.compute())
    assert metric.rows == 30  # the copies took nothing of the original along


def test_states_that_are_not_persistent_stay_out_of_the_state_dict():
    metric = RankMe()
    metric.persistent(False)
    metric.update(rows(9, 3))
    assert not metric.state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_and_half_modules(dtype):
    z = rows(50, 4).to(dtype)
    metric = Spectrum(center=True).to(dtype).half()
    metric.update(z)
    exact = functional.singular_values(z.double(), center=True).float()
    assert metric.scatter.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), exact)


def test_under_autocast_and_inference_mode():
    z = rows(40, 4).float()
    metric, plain = Spectrum(), Spectrum()
    plain.update(z)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        metric.update(z[:20])
        metric.compute()
    metric.update(z[20:])
    torch.testing.assert_close(metric.compute(), plain.compute())


def test_a_collection_updates_one_sketch():
    metrics = collapse_metrics()
    z = rows(100, 6)
    for batch in z.split(30):
        metrics.update(batch)
    states = {id(m.scatter) for m in metrics.values(copy_state=False)}
    assert len(states) == 1
    values = metrics.compute()
    torch.testing.assert_close(values["rankme"], functional.rankme(z).float())
    centered = functional.singular_values(z, center=True)
    torch.testing.assert_close(
        values["effective_rank"], functional.effective_rank(centered).float()
    )
    torch.testing.assert_close(values["alpha_req"], functional.alpha_req(centered).float())
    torch.testing.assert_close(
        values["condition_number"], functional.condition_number(centered).float()
    )


def test_a_collection_after_reset_forward_pickle_and_state_dict():
    z = rows(100, 6)
    expected = collapse_metrics()
    expected.update(z)
    values = expected.compute()
    metrics = collapse_metrics()
    metrics.update(rows(10, 6, seed=1))
    metrics.reset()
    metrics(z[:50])
    metrics = pickle.loads(pickle.dumps(metrics))
    metrics.update(z[50:80])
    loaded = collapse_metrics()
    loaded.load_state_dict(metrics.state_dict())
    loaded.update(z[80:])
    for name, value in loaded.compute().items():
        torch.testing.assert_close(value, values[name])


def test_groups_of_a_plain_collection_keep_apart_what_treats_rows_differently():
    metrics = MetricCollection(
        {
            "raw": RankMe(),
            "centered": EffectiveRank(center=True),
            "drop": RankMe(nan_strategy="drop"),
            "sphere": WassersteinUniformity(),
        }
    )
    unit = torch.eye(4).repeat(3, 1)  # of length one already: the sphere's sketch looks the same
    metrics.update(unit)
    groups = sorted(sorted(names) for names in metrics.compute_groups.values())
    assert groups == [["centered", "raw"], ["drop"], ["sphere"]]


def test_extreme_scales():
    z = rows(30, 4)
    for scale in (1e-30, 1e30):
        metric = RankMe()
        metric.update(z * scale)
        torch.testing.assert_close(metric.compute(), functional.rankme(z).float())


def test_bad_input():
    metric = RankMe()
    with (
        pytest.raises(ValueError, match="compute needs at least one update"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        metric.compute()
    metric.update(torch.eye(3))
    with pytest.raises(ValueError, match="z must have 3 columns as the batches before, got 4"):
        metric.update(torch.eye(4))
    with pytest.raises(ValueError, match=r"z must be 2-D .* got shape \(3,\)"):
        metric.update(torch.ones(3))
    with pytest.raises(ValueError, match=r"not empty, got shape \(0, 3\)"):
        metric.update(torch.ones(0, 3))
    with pytest.raises(ValueError, match="z must be finite, got 1 NaN or inf"):
        metric.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    assert float(metric.compute()) == pytest.approx(3, rel=1e-5)  # none of it got in
    with pytest.raises(ValueError, match="nan_strategy must be one of error, drop, got 'skip'"):
        RankMe(nan_strategy="skip")
    with pytest.raises(ValueError, match="rtol must be between 0 and 1, got 2"):
        CollapsedDimensions(rtol=2)
    zero = RankMe()
    zero.update(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="all zero"):
        zero.compute()
    wider = RankMe()
    wider.update(torch.eye(5))
    with pytest.raises(ValueError, match=r"one width in all that is merged, got \[3, 5\]"):
        metric.merge_state(wider)


def test_rows_that_are_not_finite_are_dropped_and_counted():
    z = rows(20, 3)
    broken = z.clone()
    broken[4, 1], broken[11, 0] = float("nan"), float("inf")
    metric, clean = RankMe(nan_strategy="drop"), RankMe()
    metric.update(broken)
    metric.update(torch.full((2, 3), float("nan")))
    clean.update(torch.cat([z[:4], z[5:11], z[12:]]))
    torch.testing.assert_close(metric.compute(), clean.compute())
    assert (int(metric.rows), int(metric.dropped)) == (18, 4)
    only_nan = RankMe(nan_strategy="drop")
    only_nan.update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match=r"got none \(2 dropped\)"):
        only_nan.compute()
