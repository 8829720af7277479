"""Dense measures against plain formulas, function and metric class together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightly_collapse.functional import effective_rank
from lightly_collapse.functional.tokens import (
    gram_drift,
    mean_token_cosine,
    norm_outliers,
    patch_rank,
)
from lightly_collapse.metrics import tokens as metrics
from tests.helpers import normal, seeds


@given(seed=seeds, n=st.integers(1, 3), p=st.integers(2, 7), d=st.integers(2, 6))
def test_plain_formulas(seed, n, p, d):
    x, y = normal(n, p, d, seed=seed), normal(n, p, d + 1, seed=seed + 1)
    y = y + y.new_ones(d + 1)
    for i in range(n):
        centred = x[i] - x[i].mean(dim=0)
        rank = effective_rank(torch.linalg.svdvals(centred))
        torch.testing.assert_close(patch_rank(x)[i], rank)
        rank = effective_rank(torch.linalg.svdvals(x[i]))
        torch.testing.assert_close(patch_rank(x, center=False)[i], rank)
        pairs = [
            torch.cosine_similarity(x[i, a], x[i, b], dim=0)
            for a in range(p)
            for b in range(p)
            if a != b
        ]
        torch.testing.assert_close(mean_token_cosine(x)[i], torch.stack(pairs).mean())
        gram = [torch.cosine_similarity(z[i][:, None], z[i][None], dim=2) for z in (x, y)]
        torch.testing.assert_close(gram_drift(x, y)[i], (gram[0] - gram[1]).square().mean())
        norms = sorted(row.norm().item() for row in x[i])
        middle = norms[(p - 1) // 2]
        share = sum(value > 1.5 * middle for value in norms) / p
        assert norm_outliers(x, 1.5)[i].item() == pytest.approx(share)


def test_equal_tokens_and_scale():
    same = normal(1, 1, 5).expand(2, 6, 5)
    torch.testing.assert_close(patch_rank(same), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(mean_token_cosine(same), torch.ones(2, dtype=torch.float64))
    x = normal(2, 6, 5)
    lengths = normal(2, 6, 1, seed=3).abs() + 0.1
    assert gram_drift(x, x * lengths).max() < 1e-12
    torch.testing.assert_close(mean_token_cosine(x * lengths), mean_token_cosine(x))
    assert patch_rank(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (metrics.PatchRank(), patch_rank),
        (metrics.PatchRank(center=False), lambda x: patch_rank(x, center=False)),
        (metrics.MeanTokenCosine(), mean_token_cosine),
        (metrics.NormOutliers(1.2), lambda x: norm_outliers(x, 1.2)),
    ],
)
def test_metrics_are_means_over_images(metric, function):
    x = normal(7, 6, 5)
    for part in x.split(3):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), function(x).mean().float())
    metric.reset()
    with pytest.raises(ValueError, match="no image was measured"), pytest.warns(match="before"):
        metric.compute()


def test_gram_drift_of_a_stream():
    x, y = normal(7, 6, 5), normal(7, 6, 5, seed=1)
    metric = metrics.GramDrift()
    for a, b in zip(x.split(3), y.split(3), strict=True):
        metric.update(a, b)
    torch.testing.assert_close(metric.compute(), gram_drift(x, y).mean().float())


def test_bad_input():
    for bad in (
        torch.zeros(3, 4),
        torch.zeros(0, 3, 4),
        torch.zeros(1, 1, 4),
        torch.zeros(1, 3, 0),
    ):
        for function in (patch_rank, mean_token_cosine, norm_outliers):
            with pytest.raises(ValueError, match="tokens must"):
                function(bad)
    with pytest.raises(ValueError, match="tokens must be finite"):
        patch_rank(torch.full((1, 3, 4), torch.nan))
    with pytest.raises(ValueError, match="reference must have the images and tokens"):
        gram_drift(torch.zeros(1, 3, 4), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"factor must be above 1, got 1\.0"):
        norm_outliers(torch.zeros(1, 3, 4), 1.0)
    with pytest.raises(ValueError, match="factor must be above 1"):
        metrics.NormOutliers(0.5)
