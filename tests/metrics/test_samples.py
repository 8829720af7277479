"""LiDAR, alignment, uniformity and the metrics of a bounded sample, against their functions."""

import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from lightly_collapse import functional
from lightly_collapse.metrics import (
    Alignment,
    LiDAR,
    LocalIntrinsicDimension,
    TwoNN,
    Uniformity,
    WassersteinUniformity,
)

SAMPLED = {
    LocalIntrinsicDimension: lambda z: functional.geometric_mean(functional.lid_mom(z, k=20)),
    TwoNN: functional.two_nn,
    Uniformity: functional.uniformity,
}


def rows(n, d=4, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) + 0.1


@pytest.mark.parametrize("metric_class", SAMPLED)
def test_with_room_for_all_rows_the_value_is_that_of_all_rows(metric_class):
    z = rows(300)
    metric = metric_class()
    for batch in z.split(77):
        metric.update(batch)
    torch.testing.assert_close(metric.compute(), SAMPLED[metric_class](z))
    assert (metric.rows_used, int(metric.rows)) == (300, 300)


@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_lid_of_every_row(estimator):
    z = rows(100)
    metric = LocalIntrinsicDimension(k=9, estimator=estimator, reduction="none")
    metric.update(z)
    function = {"mom": functional.lid_mom, "mle": functional.lid_mle}[estimator]
    torch.testing.assert_close(metric.compute(), function(metric.sample, k=9))
    torch.testing.assert_close(metric.compute().sort().values, function(z, k=9).sort().values)


def test_the_sample_is_bounded_uniform_and_seeded():
    n, size, draws = 40, 10, 400
    counts = torch.zeros(n)
    pairs = torch.zeros(n, n)
    for seed in range(draws):
        metric = TwoNN(size=size, seed=seed)
        for batch in torch.arange(n, dtype=torch.float32)[:, None].split(7):
            metric.update(batch)
        kept = metric.sample[:, 0].long()
        assert len(kept.unique()) == size
        counts[kept] += 1
        pairs[kept[:, None], kept] += 1
    expected = draws * size / n
    chi2 = ((counts - expected) ** 2 / (expected * (1 - size / n))).sum() * (n - 1) / n
    assert chi2 < 80  # 39 degrees of freedom: p about 1e-4
    pair = draws * size * (size - 1) / (n * (n - 1))
    off_diagonal = pairs[~torch.eye(n, dtype=torch.bool)]
    assert abs(float(off_diagonal.mean()) - pair) < 1e-4
    assert float(off_diagonal.max()) < pair + 6 * pair**0.5
    again = TwoNN(size=size, seed=draws - 1)
    for batch in torch.arange(n, dtype=torch.float32)[:, None].split(7):
        again.update(batch)
    torch.testing.assert_close(again.sample, metric.sample)


def test_a_sample_estimates_the_value_of_all_rows():
    z = rows(6000, 3)
    metric = TwoNN(size=1500, seed=3)
    for batch in z.split(500):
        metric.update(batch)
    assert metric.rows_used == 1500
    assert float(metric.compute()) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("metric_class", SAMPLED)
def test_forward_reset_pickle_state_dict_and_merge(metric_class):
    z = rows(300)
    expected = SAMPLED[metric_class](z)
    metric = metric_class()
    for batch in z.split(100):
        torch.testing.assert_close(metric(batch), SAMPLED[metric_class](batch))
    torch.testing.assert_close(metric.compute(), expected)
    loaded = metric_class()
    loaded.load_state_dict(metric.state_dict())
    assert loaded.compute() == metric.compute()
    assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()
    other = metric_class(seed=1)
    metric.reset()
    metric.update(z[:100])
    other.update(z[100:])
    metric.merge_state(other)
    torch.testing.assert_close(metric.compute(), expected)


def test_forward_samples_the_stream_as_update_does():
    batches = rows(90).split(10)
    updated, forwarded = Uniformity(size=12), Uniformity(size=12)
    for batch in batches:
        updated.update(batch)
        forwarded(batch)
    torch.testing.assert_close(forwarded.sample, updated.sample)
    assert forwarded.rows == 90


def test_samples_of_equal_settings_are_shared_and_others_are_not():
    metrics = MetricCollection(
        {"lid": LocalIntrinsicDimension(k=5), "two_nn": TwoNN(), "small": TwoNN(size=50)}
    )
    metrics.update(rows(40))
    groups = sorted(sorted(names) for names in metrics.compute_groups.values())
    assert groups == [["lid", "two_nn"], ["small"]]


def test_bad_input_to_samples():
    metric = LocalIntrinsicDimension(k=10)
    with (
        pytest.raises(ValueError, match="compute needs at least one update"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        metric.compute()
    metric.update(rows(10))
    with pytest.raises(ValueError, match="k must be below the number of rows seen, 10, got 10"):
        metric.compute()
    with pytest.raises(ValueError, match="z must have 4 columns as the batches before, got 3"):
        metric.update(rows(2, 3))
    with pytest.raises(ValueError, match="z must be finite, got 4 NaN"):
        metric.update(torch.full((1, 4), float("nan")))
    dropping = TwoNN(nan_strategy="drop")
    dropping.update(torch.cat([rows(9), torch.full((1, 4), float("inf"))]))
    assert (dropping.rows_used, int(dropping.dropped)) == (9, 1)
    for keywords, message in (
        ({"size": 1}, "size must be at least 2, got 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"estimator": "pca"}, "estimator must be one of mom, mle, got 'pca'"),
        ({"reduction": "mean"}, "reduction must be"),
        ({"k": 1}, "k must be between 2 and size - 1, 4999, got 1"),
        ({"k": 50, "size": 50}, "k must be between 2 and size - 1, 49, got 50"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalIntrinsicDimension(**keywords)
    with pytest.raises(ValueError, match="t must be positive"):
        Uniformity(t=-1)


def augmented(n, q=3, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, d, generator=g) + 0.3 * torch.randn(n, q, d, generator=g) + 5


def test_lidar_of_batches_is_that_of_all():
    z = augmented(50)
    metric = LiDAR()
    for batch in z.split(8):
        metric.update(batch)
    torch.testing.assert_close(metric.compute(), functional.lidar(z.double()).float())
    torch.testing.assert_close(LiDAR()(z), functional.lidar(z))
    other, total = LiDAR(), LiDAR()
    other.update(augmented(30, seed=1))
    metric.merge_state(other)
    total.update(torch.cat([z, augmented(30, seed=1)]))
    torch.testing.assert_close(metric.compute(), total.compute())
    loaded = LiDAR()
    loaded.load_state_dict(metric.state_dict())
    assert pickle.loads(pickle.dumps(loaded)).compute() == metric.compute()


def test_lidar_drops_samples_that_are_not_finite():
    z = augmented(20)
    broken = z.clone()
    broken[3, 1, 2] = float("nan")
    metric = LiDAR(nan_strategy="drop")
    metric.update(broken.half())
    kept = torch.cat([z[:3], z[4:]]).half()
    torch.testing.assert_close(metric.compute(), functional.lidar(kept))
    assert int(metric.dropped) == 1
    with pytest.raises(ValueError, match="z must be finite, got 1 NaN"):
        LiDAR().update(broken)


def test_lidar_bad_input():
    metric = LiDAR()
    with pytest.raises(ValueError, match="z must be 3-D"):
        metric.update(torch.zeros(4, 3))
    metric.update(augmented(1))
    with pytest.raises(ValueError, match="needs two samples or more, got 1"):
        metric.compute()
    with pytest.raises(ValueError, match="5 columns"):
        metric.update(augmented(2, d=4))
    with pytest.raises(ValueError, match="delta must be positive"):
        LiDAR(delta=0)


def test_alignment_of_batches_is_that_of_all():
    z0, z1 = rows(50), rows(50, seed=1)
    metric = Alignment(nan_strategy="drop")
    for pair in zip(z0.split(20), z1.split(20), strict=True):
        metric.update(*pair)
    metric.update(torch.full((1, 4), float("nan")), torch.ones(1, 4))
    torch.testing.assert_close(metric.compute(), functional.alignment(z0, z1))
    assert int(metric.dropped) == 1
    torch.testing.assert_close(Alignment()(z0, z1), functional.alignment(z0, z1))
    other = Alignment(nan_strategy="drop")
    other.load_state_dict(metric.state_dict())
    other.merge_state(metric)
    torch.testing.assert_close(other.compute(), functional.alignment(z0, z1))
    with pytest.raises(ValueError, match="z0 and z1 must be 2-D and of one shape"):
        metric.update(z0, z1[:3])


def test_wasserstein_uniformity_of_batches_is_that_of_all():
    z = torch.randn(70, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    metric = WassersteinUniformity()
    for batch in z.split(30):
        metric.update(batch)
    torch.testing.assert_close(
        metric.compute(), functional.wasserstein_uniformity(z.double()).float()
    )
    with pytest.raises(ValueError, match="no zero row"):
        metric.update(torch.zeros(2, 5))
