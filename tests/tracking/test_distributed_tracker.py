"""Two processes read what one does: under DDP, under FSDP2, and where one process lacks a layer."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightly_collapse.loss import OrthogonalityRegularizer
from lightly_collapse.tracking import CollapseTracker

WORLD = 2
STEPS = 4


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8))
        self.extra = nn.Linear(8, 8)

    def forward(self, x, rank=None):
        z = self.backbone(x)
        return self.extra(z) if rank in (None, 1) else z + 0 * sum(self.extra.weight[0])


def train(kind=None, rank=None, folder=None):
    """Readings and weights after a few steps, of one process or of a share of two."""
    model = Model()
    run = model
    if kind == "ddp":
        run = DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (WORLD,))
        fully_shard(model.backbone, mesh=mesh)
        run = fully_shard(model, mesh=mesh)
    regularizer = OrthogonalityRegularizer(model.backbone, weight=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    generator = torch.Generator().manual_seed(1)
    with CollapseTracker(
        run, every_n_steps=2, window=2, lid_k=4, dirpath=folder, lid_size=1000
    ) as tracker:
        for _ in range(STEPS):
            optimizer.zero_grad()
            x = torch.randn(32, 6, generator=generator)
            run(x if rank is None else x.chunk(WORLD)[rank]).square().mean().backward()
            regularizer.accumulate_gradient()
            optimizer.step()
            readings = tracker.step()
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return readings, [p.detach() for p in full]


def one_sided(rank):
    """Only the second process calls `extra`."""
    model = Model()
    with CollapseTracker(model, ("backbone", "extra"), every_n_steps=1, lid_k=4) as tracker:
        model(torch.randn(16, 6), rank)
        return tracker.step()


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=Path(folder, "rendezvous").as_uri(), rank=rank, world_size=WORLD
    )
    results = {kind: train(kind, rank, Path(folder, kind)) for kind in ("ddp", "fsdp")}
    results["one_sided"] = one_sided(rank)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracker")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_read_and_train_as_one(results, kind):
    folder, found = results
    expected, weights = train()
    for rank in range(WORLD):
        readings, parameters = found[rank][kind]
        assert readings == pytest.approx(expected, rel=1e-3)
        for ours, theirs in zip(parameters, weights, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (folder / kind / "collapse.csv").read_text().count("\n") == 3  # of one process


def test_a_layer_that_one_process_calls(results):
    _, found = results
    first, second = (result["one_sided"] for result in found)
    assert first == pytest.approx(second, nan_ok=True)
    assert first["collapse/backbone/rows"] == 32
    assert first["collapse/extra/rows"] == 16
