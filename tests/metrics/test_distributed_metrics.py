"""Two gloo processes with unequal shares against one process with all rows."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from lightly_collapse.metrics import (
    Alignment,
    LiDAR,
    LocalIntrinsicDimension,
    RankMe,
    Spectrum,
    TwoNN,
    Uniformity,
    WassersteinUniformity,
    collapse_metrics,
)

WORLD = 2
D = 6
CUT = 70  # the first process has more rows, and about another mean


def rows():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(95, D, generator=g) * torch.logspace(0, -3, D)
    return torch.cat([z[:CUT] + 50, z[CUT:] + 80])


def metrics():
    return {
        "rankme": RankMe(),
        "centered": Spectrum(center=True),
        "drop": RankMe(nan_strategy="drop"),
        "wasserstein": WassersteinUniformity(),
        "lid": LocalIntrinsicDimension(k=8),
        "two_nn": TwoNN(),
        "uniformity": Uniformity(),
        "collapse": collapse_metrics(),
        "collection": MetricCollection([RankMe(), Spectrum()]),
    }


def share(rank, lopsided):
    if lopsided:
        return rows() if rank else None
    return rows()[CUT:] if rank else rows()[:CUT]


def values_of(batches, more):
    """What every metric gives after the batches, and after some more on every process."""
    found = {}
    for name, metric in metrics().items():
        for batch in batches:
            metric.update(batch)
        first = metric.compute()
        metric.update(more)
        found[name] = first, metric.compute()
    lidar, alignment = LiDAR(), Alignment()
    for batch in batches:
        views = torch.stack([batch, batch.flip(1) / 2, batch.sin()], dim=1)
        lidar.update(views)
        alignment.update(views[:, 0], views[:, 1])
    found["lidar"], found["alignment"] = (lidar.compute(), None), (alignment.compute(), None)
    return found


def bad_input(rank):
    """The errors of metrics whose last process was given a NaN, and a value after a reset."""
    errors = {}
    z = torch.eye(D)
    for name, metric in {
        "rankme": RankMe(),
        "lid": LocalIntrinsicDimension(k=2),
        "alignment": Alignment(),
        "collapse": collapse_metrics(),
    }.items():
        batch = z * torch.nan if rank == WORLD - 1 else z
        metric.update(*([batch, batch] if name == "alignment" else [batch]))
        try:
            metric.compute()
        except ValueError as error:
            errors[name] = str(error)
        if name == "rankme":
            metric.reset()
            metric.update(z)
            errors["after"] = f"{metric.compute():.3f}"
    return errors


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "rendezvous").as_uri(),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for lopsided in (False, True):
        mine = share(rank, lopsided)
        batches = [] if mine is None else mine.split(20)
        results[lopsided] = values_of(batches, rows()[rank : rank + 1] + 1)
    sampled = TwoNN(size=30)
    sampled.update(share(rank, lopsided=False))
    sampled.compute()
    sampled.sync()
    results["sampled"] = sampled.sample
    sampled.unsync()
    results["own"] = sampled.rows_used
    mismatched = RankMe()
    mismatched.update(torch.eye(3 + rank))
    try:
        mismatched.compute()
    except ValueError as error:
        results["error"] = str(error)
    results["bad"] = bad_input(rank)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))  # the children import this file
        mp.start_processes(work, args=(str(folder),), nprocs=WORLD, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("lopsided", [False, True])
@pytest.mark.parametrize("rank", range(WORLD))
def test_every_process_gets_the_value_of_all_rows(results, rank, lopsided):
    expected = values_of([rows()], rows()[:2] + 1)
    for name, value in expected.items():
        torch.testing.assert_close(
            results[rank][lopsided][name],
            value,
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def test_samples_of_all_processes_merge_into_one_of_the_same_size(results):
    samples = [r["sampled"] for r in results]
    assert torch.equal(*samples)
    assert len(samples[0].unique(dim=0)) == 30
    own = (samples[0][:, 0] < 65).sum()  # 70 of the 95 rows are the first process's
    assert 12 <= own <= 29
    assert [r["own"] for r in results] == [30, 25]  # compute gave every process its own back


def test_widths_that_differ_are_an_error_on_every_process(results):
    for r in results:
        assert "one width in all that is merged, got [3, 4]" in r["error"]


def test_bad_input_of_one_process_is_an_error_on_every_process(results):
    for r in results:
        assert r["bad"].pop("after") == f"{D}.000"
        assert set(r["bad"]) == {"rankme", "lid", "alignment", "collapse"}
        for message in r["bad"].values():
            assert "must be finite, got" in message
            assert message.endswith(f"(on process {WORLD - 1})")
