"""Formulas and metrics on the GPU against the same in float64 on the CPU."""

import pytest
import torch

from lightly_collapse import functional
from lightly_collapse.functional import tokens
from lightly_collapse.metrics import (
    EmbeddingSketch,
    LiDAR,
    LocalIntrinsicDimension,
    TwoNN,
    Uniformity,
    WassersteinUniformity,
    collapse_metrics,
)


def rows(n=400, d=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -3, d, dtype=torch.float64)
    return 0.3 + torch.randn(n, d, generator=g, dtype=torch.float64) * scales


OF_ROWS = {
    "alpha_req": functional.alpha_req,
    "collapsed_dimensions": functional.collapsed_dimensions,
    "condition_number": functional.condition_number,
    "effective_rank": functional.effective_rank,
    "participation_ratio": functional.participation_ratio,
    "rankme": functional.rankme,
    "stable_rank": functional.stable_rank,
    "lid_mom": functional.lid_mom,
    "lid_mle": functional.lid_mle,
    "two_nn": functional.two_nn,
    "uniformity": functional.uniformity,
    "wasserstein_uniformity": functional.wasserstein_uniformity,
    "covariance_penalty": functional.covariance_penalty,
    "variance_penalty": functional.variance_penalty,
}
OF_SPECTRUM = {"alpha_req", "collapsed_dimensions", "condition_number", "effective_rank"} | {
    "participation_ratio",
    "stable_rank",
}


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_formula_gives_the_value_of_the_cpu_in_float64(gpu, name, autocast):
    function, z = OF_ROWS[name], rows()
    x, expected = z.to(gpu, torch.float32), z
    if name in OF_SPECTRUM:
        expected = functional.singular_values(z)
        with torch.autocast(gpu.type, enabled=autocast):
            x = functional.singular_values(x)
        torch.testing.assert_close(x.cpu().double(), expected, rtol=1e-3, atol=1e-5)
    with torch.autocast(gpu.type, enabled=autocast):
        value = function(x)
    if isinstance(value, torch.Tensor):
        assert value.device.type == gpu.type
        value = value.cpu().double()
    torch.testing.assert_close(
        torch.as_tensor(value).double(), torch.as_tensor(function(expected)).double(),
        rtol=2e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["patch_rank", "mean_token_cosine", "norm_outliers"])
def test_token_measures(gpu, name):
    x = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(0))
    value = getattr(tokens, name)(x.to(gpu))
    torch.testing.assert_close(value.cpu(), getattr(tokens, name)(x), rtol=1e-3, atol=1e-4)


def test_singular_values_from_1_to_1e_minus_6(gpu):
    g = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(2000, 32, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(32, 32, generator=g, dtype=torch.float64)).Q
    z = (u * torch.logspace(0, -6, 32, dtype=torch.float64) @ v.T).float()
    metrics = collapse_metrics(spectrum=True).to(gpu)
    for batch in z.to(gpu).chunk(7):
        metrics.update(batch)
    expected = torch.linalg.svdvals(z.double() - z.double().mean(0))
    spectrum = metrics.compute()["spectrum"]
    assert spectrum.device.type == gpu.type
    torch.testing.assert_close(spectrum.cpu().double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "metric_class", [LocalIntrinsicDimension, TwoNN, Uniformity, WassersteinUniformity]
)
def test_metrics_that_keep_rows_give_the_value_of_the_cpu(gpu, metric_class):
    z = rows().float()
    ours, theirs = metric_class().to(gpu), metric_class()
    for batch in z.split(90):
        ours.update(batch.to(gpu))
        theirs.update(batch)
    value = ours.compute()
    assert value.device.type == gpu.type
    torch.testing.assert_close(value.cpu(), theirs.compute(), rtol=2e-3, atol=1e-4)


def test_lidar(gpu):
    z = torch.randn(60, 4, 16, generator=torch.Generator().manual_seed(2))
    z = z + 3 * torch.randn(60, 1, 16, generator=torch.Generator().manual_seed(3))
    ours, theirs = LiDAR().to(gpu), LiDAR()
    for batch in z.split(25):
        ours.update(batch.to(gpu))
        theirs.update(batch)
    torch.testing.assert_close(ours.compute().cpu(), theirs.compute(), rtol=1e-3, atol=0)


def test_a_sketch_of_rows_on_the_gpu_is_that_of_the_cpu(gpu):
    z = rows().float()
    ours, theirs = EmbeddingSketch(), EmbeddingSketch()
    for i, batch in enumerate(z.split(100)):
        numbers = torch.arange(100 * i, 100 * i + len(batch))
        ours.update(batch.to(gpu), numbers.to(gpu))
        theirs.update(batch, numbers)
    a, b = ours.compute().scalars, theirs.compute().scalars
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert a[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def test_no_more_memory_than_a_chunk_of_the_distances(gpu):
    x = torch.randn(30_000, 64, device=gpu)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    functional.lid_mom(x, k=20)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 0.25 * 4 * len(x) ** 2, f"{used / 2**20:.0f} MiB"
