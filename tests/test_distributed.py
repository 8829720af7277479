"""Two processes against one with the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightly_collapse.loss import (
    DirectCLRLoss,
    LDRegularizer,
    OrthogonalityRegularizer,
    VarianceCovarianceRegularizer,
)
from tests.helpers import normal

WORLD = 2
ROWS = 6  # a process and view
DIM = 5
Views = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss of two views and further rows; `mismatch` cuts the last process's rows."""

    kind: str
    norm: str = "l1"
    estimator: str = "mom"
    with_reference: bool = False
    mismatch: str = ""

    def loss(self) -> Loss:
        if self.kind == "directclr":
            directclr = DirectCLRLoss(loss_dim=3, temperature=0.3, gather_distributed=True)
            return lambda z0, z1, _: directclr(z0, z1)
        if self.kind == "covariance":
            covariance = VarianceCovarianceRegularizer(1.0, 0.5, gather_distributed=True)
            return lambda z0, z1, _: covariance(z0, z1)
        ldreg = LDRegularizer(
            weight=0.7, k=7, norm=self.norm, estimator=self.estimator, gather_distributed=True
        )
        return lambda z0, z1, further: ldreg(
            z0, z1, reference=further if self.with_reference else None
        )


CASES = [
    Case("directclr"),
    Case("covariance"),
    *(
        Case("ldreg", norm, estimator, with_reference)
        for norm in ("l1", "l2")
        for estimator in ("mom", "mle")
        for with_reference in (False, True)
    ),
]
MISMATCHES = [
    Case("directclr", mismatch="views"),
    Case("covariance", mismatch="views"),
    Case("ldreg", mismatch="views"),
    Case("ldreg", with_reference=True, mismatch="reference"),
]


BAD = {"directclr": "out1", "covariance": "views[1]", "ldreg": "views[1]"}


def bad_share(rank: int) -> Views:
    """Rows of which those of the last process hold a NaN in the second view."""
    x0, x1, further = (x[rank * ROWS : (rank + 1) * ROWS, :DIM].clone() for x in batch())
    if rank == WORLD - 1:
        x1[1, 2] = torch.nan
    return x0, x1, further


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, DIM)).double()


def batch() -> Views:
    rows = WORLD * ROWS
    return normal(rows, 4), normal(rows, 4, seed=1), normal(rows, DIM, seed=2)


def step(model: nn.Module, loss_fn: Loss, views: Views) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of one training step, both views in one pass as Lightly users do."""
    x0, x1, further = views
    z0, z1 = model(torch.cat([x0, x1])).chunk(2)
    loss = loss_fn(z0, z1, further)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def share(case: Case, rank: int) -> Views:
    x0, x1, further = (x[rank * ROWS : (rank + 1) * ROWS] for x in batch())
    last = rank == WORLD - 1
    if last and case.mismatch == "views":
        return x0[:-1], x1[:-1], further
    if last and case.mismatch == "reference":
        return x0, x1, further[:-1]
    return x0, x1, further


class Regularized(nn.Module):
    """A backbone and its regularizer inside one module, for DistributedDataParallel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = encoder()
        self.regularizer = OrthogonalityRegularizer(self.backbone, weight=0.1)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.backbone(x).square().mean() + self.regularizer()
        return loss


def work(rank: int, folder: str) -> None:
    """What every process does: all cases, one after the other, into one file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "rendezvous").as_uri(),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results: dict[Any, Any] = {}
    for case in CASES:
        model = DistributedDataParallel(encoder())
        results[case] = step(model, case.loss(), share(case, rank))
    for case in MISMATCHES:
        try:
            step(encoder(), case.loss(), share(case, rank))
        except ValueError as error:
            results[case] = str(error)
    for kind in BAD:
        try:
            Case(kind).loss()(*bad_share(rank))
        except ValueError as error:
            results[f"bad {kind}"] = str(error)
    x = batch()[0][rank * ROWS : (rank + 1) * ROWS]
    inside = DistributedDataParallel(Regularized())
    inside(x).backward()
    results["regularizer inside"] = [p.grad for p in inside.parameters()]
    results["keys"] = list(inside.module.state_dict())
    beside = DistributedDataParallel(encoder())
    (beside(x).square().mean() + OrthogonalityRegularizer(beside, weight=0.1)()).backward()
    results["regularizer beside"] = [p.grad for p in beside.parameters()]
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))  # the children import this file
        processes = mp.start_processes(
            work, args=(str(folder),), nprocs=WORLD, join=False, start_method="spawn"
        )
        try:
            deadline = 120
            while not processes.join(timeout=5):
                deadline -= 5
                if deadline <= 0:
                    pytest.fail("the processes hang")
        finally:
            for process in processes.processes:
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_of_one_process(
    results: list[dict[Any, Any]], case: Case
) -> None:
    value, gradients = step(encoder(), case.loss(), batch())
    for result in results:
        found, found_gradients = result[case]
        torch.testing.assert_close(found, value, rtol=1e-10, atol=0)
        torch.testing.assert_close(found_gradients, gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_part_of_the_batch_gives_something_else(case: Case) -> None:
    # Else the test above would pass without any gathering.
    whole, _ = step(encoder(), case.loss(), batch())
    part, _ = step(encoder(), case.loss(), share(case, 0))
    assert abs(whole - part) > 1e-3


@pytest.mark.parametrize("case", MISMATCHES, ids=str)
def test_mismatched_shapes_raise_on_every_process(
    results: list[dict[Any, Any]], case: Case
) -> None:
    name = {"directclr": "out0", "ldreg": "views", "covariance": "views[0]"}[case.kind]
    if case.mismatch == "reference":
        name = "reference"
    messages = [result[case] for result in results]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{name} must have one shape on all processes")
    assert "drop_last" in messages[0]


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_of_one_process_raises_on_every_process(
    results: list[dict[Any, Any]], kind: str
) -> None:
    for result in results:
        message = result[f"bad {kind}"]
        assert message.startswith(f"{BAD[kind]} must be finite, got 1 NaN")
        assert message.endswith(f"(on process {WORLD - 1})")


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_orthogonality_with_ddp(results: list[dict[Any, Any]], place: str) -> None:
    model = Regularized()
    model(batch()[0]).backward()
    exact = [p.grad for p in model.parameters()]
    for result in results:
        found = result[f"regularizer {place}"]
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-12)
        assert result["keys"] == [f"backbone.{key}" for key in model.backbone.state_dict()]


def test_without_processes_gathering_is_nothing() -> None:
    z0, z1 = normal(8, 4), normal(8, 4, seed=1)
    for gathering, alone in (
        (DirectCLRLoss(3, gather_distributed=True), DirectCLRLoss(3)),
        (LDRegularizer(k=4, gather_distributed=True), LDRegularizer(k=4)),
    ):
        assert gathering(z0, z1) == alone(z0, z1)
