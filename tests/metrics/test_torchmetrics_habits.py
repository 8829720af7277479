"""What torchmetrics' own tools ask of a metric, and what the collection asks of torchmetrics."""

import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import Metric, MetricCollection, MetricTracker

from lightly_collapse import metrics

INPUTS = {
    "Alignment": (torch.randn(40, 5), torch.randn(40, 5)),
    "LiDAR": (torch.randn(40, 4, 5),),
    "GramDrift": (torch.randn(4, 9, 5), torch.randn(4, 9, 5)),
    "MeanTokenCosine": (torch.randn(4, 9, 5),),
    "NormOutliers": (torch.randn(4, 9, 5),),
    "PatchRank": (torch.randn(4, 9, 5),),
    **dict.fromkeys(
        ("CKA", "InformationImbalance", "ModalityGap", "NeighborOverlap"),
        (torch.randn(60, 5), torch.randn(60, 5)),
    ),
}
CLASSES = [
    name
    for name in metrics.__all__
    if isinstance(getattr(metrics, name), type) and issubclass(getattr(metrics, name), Metric)
]


@pytest.mark.parametrize("name", CLASSES)
def test_every_metric_plots(name):
    try:
        metric = getattr(metrics, name)()
    except TypeError:
        pytest.skip("takes arguments without a default")
    if not hasattr(metric, "_plot"):
        pytest.skip("a collection of metrics")
    metric.update(*INPUTS.get(name, (torch.randn(60, 5),)))
    value = metric.compute()
    if not isinstance(value, torch.Tensor):
        pytest.skip("gives no tensor")
    figure, axes = metric.plot(value)
    assert axes.lines
    plt.close(figure)


def test_the_tracker_of_torchmetrics_takes_the_collection():
    tracker = MetricTracker(metrics.collapse_metrics())
    for scale in (1.0, 0.1):
        tracker.increment()
        x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        tracker.update(x * torch.tensor([1, 1, 1, scale]))
    best, steps = tracker.best_metric(return_step=True)
    assert steps["effective_rank"] == steps["alpha_req"] == steps["condition_number"] == 0
    assert best["effective_rank"] > 3.5


def test_private_attributes_that_the_collection_needs():
    # CollapseMetrics gathers the states of a compute group once. torchmetrics has no public way.
    metric = metrics.RankMe()
    for name in ("_computed", "_is_synced", "_to_sync", "_should_unsync"):
        assert hasattr(metric, name)
    collection = MetricCollection({"a": metrics.RankMe()})
    assert hasattr(collection, "_state_is_copy")
    assert callable(collection._compute_groups_create_state_ref)
