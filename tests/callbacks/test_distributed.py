"""Both callbacks under Lightning's own DDP: two processes train, and measure, as one does."""

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightly_collapse.callbacks import CollapseMonitor, OrthogonalityCallback


class Plain(pl.LightningModule):
    """Without batch normalisation or dropout: a process's share is all that it computes with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        data, world = TensorDataset(x), self.trainer.world_size
        # Dealt out in turns: two shares of 8 rows are the 16 rows of the one process.
        sampler = DistributedSampler(data, world, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, 16 // world, sampler=sampler)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.backbone(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def fit(folder: Path, processes: int) -> tuple[Plain, list[dict[str, str]]]:
    model = Plain()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        max_epochs=2,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            OrthogonalityCallback("srip", 0.05),
            OrthogonalityCallback(weight="auto"),
            CollapseMonitor(lid_k=5),
        ],
    )
    trainer.fit(model)
    with (folder / "collapse.csv").open(newline="") as file:
        return model, list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_and_measure_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    model, rows = fit(tmp_path / "one", 1)
    again, rows_of_two = fit(tmp_path / "two", 2)
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # No validation loop: the rows are those of training, of both processes, once an epoch.
    assert [row["backbone/rows"] for row in rows] == ["64.0", "64.0"]
    assert len(rows_of_two) == 2
    for ours, theirs in zip(rows_of_two, rows, strict=True):
        numbers = {name: float(value) for name, value in theirs.items()}
        assert {name: float(value) for name, value in ours.items()} == pytest.approx(
            numbers, rel=1e-3
        )
