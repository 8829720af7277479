"""Two processes give the gradient of one, through the loss and beside it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightly_collapse.loss import OrthogonalityRegularizer

WORLD = 2
KINDS = ("so", "dso", "mc", "srip", "conv")


class Regularized(nn.Module):
    """An encoder with the regularizer inside, so that its buffers are synchronised too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 40), nn.Linear(40, 36)
        )
        self.regularizer = OrthogonalityRegularizer(self.backbone, kind, weight=0.1)

    def forward(self, x: Tensor, penalized: bool) -> Tensor:
        loss: Tensor = self.backbone(x).square().mean()
        return loss + self.regularizer() if penalized else loss


def train(kind: str, door: str, rank: int | None = None) -> list[Tensor]:
    model = Regularized(kind)
    run = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        run(x if rank is None else x.chunk(WORLD)[rank], door == "module").backward()
        if door == "beside":
            model.regularizer.accumulate_gradient()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=Path(folder, "rendezvous").as_uri(), rank=rank, world_size=WORLD
    )
    results = {f"{k} {door}": train(k, door, rank) for k in KINDS for door in ("module", "beside")}
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("doors")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", ["module", "beside"])
def test_two_processes_train_as_one(
    results: list[dict[str, list[Tensor]]], kind: str, door: str
) -> None:
    expected = train(kind, "module")
    for result in results:
        for ours, theirs in zip(result[f"{kind} {door}"], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
