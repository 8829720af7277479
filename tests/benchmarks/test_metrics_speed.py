"""Speed and memory of the measures, as ratios of two things timed in turn in one run."""

import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from lightly_collapse import functional
from lightly_collapse.callbacks import CollapseMonitor
from lightly_collapse.metrics import RankMe, Spectrum, collapse_metrics
from lightly_collapse.tracking import CollapseAlarm, CollapseTracker
from lightly_collapse.tracking.collector import LayerCollector


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ratio(benchmark, ours, theirs, rounds):
    """Least time of `ours` over that of `theirs`, run in turn: others' load meets both alike."""
    times = {ours: [], theirs: []}
    for _ in range(rounds):
        for function, found in times.items():
            started = time.perf_counter()
            function()
            found.append(time.perf_counter() - started)
    mine, other = min(times[ours]), min(times[theirs])
    benchmark.extra_info.update(seconds=mine, baseline_seconds=other, ratio=mine / other)
    benchmark.pedantic(ours, rounds=1)
    print(f"\n{benchmark.name}: {mine:.3f} s, baseline {other:.3f} s, ratio {mine / other:.3f}")
    return mine / other


def update(metric, z, batch=256):
    for rows in z.split(batch):
        metric.update(rows)
    return metric


def test_rankme_against_centring_pca_and_entropy(benchmark):
    z = normal(10_000, 2048)
    array = z.numpy()

    def pca():
        s = torch.from_numpy(PCA(svd_solver="full").fit(array - array.mean(0)).singular_values_)
        return functional.effective_rank(s)

    assert ratio(benchmark, lambda: functional.rankme(z), pca, rounds=2) <= 1 / 3


@pytest.mark.parametrize("d", [512, 2048])
def test_all_spectrum_metrics_against_one(benchmark, d):
    z = normal(10_000, d)
    relative = ratio(
        benchmark,
        lambda: update(collapse_metrics(), z).compute(),
        lambda: update(RankMe(), z).compute(),
        rounds=5,
    )
    assert relative <= 1.1


@pytest.mark.parametrize("batch", [256, 2048])
def test_sketch_update_against_one_qr(benchmark, batch):
    z = normal(10_000, 2048)
    relative = ratio(
        benchmark,
        lambda: update(Spectrum(), z, batch),
        lambda: torch.linalg.qr(z, mode="r"),
        rounds=3,
    )
    assert relative <= 1.5


def test_lidar_against_the_textbook(benchmark):
    z = normal(500, 1, 512) + 0.5 * normal(500, 10, 512, seed=1)

    def textbook():
        means = z.mean(dim=1)
        between = means - means.mean(dim=0)
        within = (z - means[:, None]).flatten(0, 1)
        s_b = between.T @ between / len(means)
        s_w = within.T @ within / len(within) + 1e-4 * torch.eye(512)
        values, vectors = torch.linalg.eig(torch.linalg.inv(s_w))
        root = (vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)).real
        eigenvalues = torch.linalg.eig(root @ s_b @ root)[0].real.clamp(min=0)
        p = eigenvalues / eigenvalues.sum() + 1e-7
        return torch.exp(-(p * p.log()).sum())

    torch.testing.assert_close(functional.lidar(z), textbook(), rtol=1e-3, atol=0)
    # In float64 where it matters, against the textbook in float32.
    assert ratio(benchmark, lambda: functional.lidar(z), textbook, rounds=6) <= 1 / 5


def test_lid_against_scikit_learn_s_neighbours(benchmark):
    z = normal(20_000, 512)
    array = z.numpy()
    relative = ratio(
        benchmark,
        lambda: functional.lid_mom(z, k=20),
        lambda: NearestNeighbors(n_neighbors=20, algorithm="brute").fit(array).kneighbors(),
        rounds=2,
    )
    assert relative <= 1


def test_lid_memory():
    program = """
import torch
from lightly_collapse.functional import lid_mom

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

z = torch.randn(20000, 512)
lid_mom(z[:500], k=20)
before = peak()
lid_mom(z, k=20)
print(peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    print(f"\nLID of 20,000 x 512: {float(run.stdout):.0f} MB of extra memory")
    assert float(run.stdout) <= 400


def test_two_nn_against_scikit_dimension(benchmark):
    skdim = pytest.importorskip("skdim.id")
    z = normal(5000, 128)
    array = z.numpy()
    relative = ratio(
        benchmark,
        lambda: functional.two_nn(z),
        lambda: skdim.TwoNN().fit(array),
        rounds=3,
    )
    assert relative <= 1 / 2


class Encoder(pl.LightningModule):
    """A ResNet-18 on 32x32 images with a loss that costs nothing."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet18(num_classes=1)
        self.backbone.fc = nn.Identity()
        self.seconds = 0.0

    def on_train_batch_start(self, *_):
        self.started = time.perf_counter()

    def training_step(self, batch, batch_idx):
        return self.backbone(batch).square().mean()

    def on_train_batch_end(self, *_):
        self.seconds += time.perf_counter() - self.started

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_collapse_monitor_against_a_training_step(benchmark, monkeypatch, tmp_path):
    spent = 0.0
    take = LayerCollector._take

    def timed(collector, layer, rows):
        nonlocal spent
        started = time.perf_counter()
        take(collector, layer, rows)
        spent += time.perf_counter() - started

    monkeypatch.setattr(LayerCollector, "_take", timed)
    module = Encoder()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[CollapseMonitor()],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark.pedantic(
            trainer.fit,
            args=(module, DataLoader(normal(8 * 256, 3, 32, 32), batch_size=256)),
            rounds=1,
        )
    relative = spent / (module.seconds - spent)
    benchmark.extra_info.update(ratio=relative)
    print(
        f"\nCollapseMonitor: {spent / 8:.4f} s a step of {module.seconds / 8:.3f} s: {relative:.2%}"
    )
    assert relative < 0.03


def test_alarm_against_a_training_step(benchmark, monkeypatch):
    """Tracker and alarm at their default schedule, a reading every 100 steps, over one such cycle.

    In processor time, which other work on the machine changes little. Only the 16 steps whose rows
    are collected are trained; in the others the hooks return at once.
    """
    spent = {"rows": 0.0}
    take = LayerCollector._take

    def timed(collector, layer, rows):
        started = time.process_time()
        take(collector, layer, rows)
        spent["rows"] += time.process_time() - started

    monkeypatch.setattr(LayerCollector, "_take", timed)
    torch.manual_seed(0)
    encoder = resnet18(num_classes=1)
    encoder.fc = nn.Identity()
    model = nn.ModuleDict({"backbone": encoder, "head": nn.Linear(512, 128)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = normal(256, 3, 32, 32)
    steps = []
    alarm = CollapseAlarm()
    with CollapseTracker(model, layers=("backbone", "head"), alarm=alarm) as tracker:
        started = time.process_time()
        for _ in range(84):
            tracker.step()
        spent["steps"] = time.process_time() - started
        for _ in range(16):
            started = time.process_time()
            before = spent["rows"]
            optimizer.zero_grad()
            model["head"](model["backbone"](images)).square().mean().backward()
            optimizer.step()
            steps.append(time.process_time() - started - spent["rows"] + before)
            started = time.process_time()
            tracker.step()
            spent["steps"] += time.process_time() - started
    assert tracker.readings["collapse/alarm"] == 0
    relative = sum(spent.values()) / (100 * min(steps))
    benchmark.extra_info.update(ratio=relative)
    started = time.process_time()
    benchmark.pedantic(lambda: CollapseAlarm().update(1, tracker.readings), rounds=1)
    judging = (time.process_time() - started) / min(steps) / 100
    print(
        f"\ntracker and alarm: {sum(spent.values()):.3f} s in 100 steps of {min(steps):.3f} s: "
        f"{relative:.2%} of a step, of which the alarm itself {judging:.4%}"
    )
    assert relative < 0.01
