"""What both Lightnings do with callbacks: the command line, early stopping, checkpoints by name."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightly_collapse.callbacks import CollapseMonitor, OrthogonalityCallback, RegularizerSchedule

PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def module_class(package: Any) -> Any:
    class Encoder(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(6, 5)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.backbone(batch).square().mean()

        def train_dataloader(self) -> Any:
            rows = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
            return DataLoader(rows, batch_size=12)  # type: ignore[arg-type]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    return Encoder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PACKAGES)
def test_early_stopping_and_checkpoints_read_the_logged_names(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip(name)
    callbacks = importlib.import_module(f"{name}.callbacks")
    key = "collapse/backbone/rankme"
    # A threshold that every rank is above ends the run after the first epoch.
    stop = callbacks.EarlyStopping(monitor=key, mode="max", stopping_threshold=0.0, patience=50)
    checkpoint = callbacks.ModelCheckpoint(tmp_path / "best", monitor=key, mode="max")
    trainer = package.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[
            CollapseMonitor(lid_k=3),
            OrthogonalityCallback("so", 1e-4),
            callbacks.ModelCheckpoint(
                tmp_path / "orthogonal", monitor="orthogonality/backbone", mode="min"
            ),
            stop,
            checkpoint,
        ],
    )
    trainer.fit(module_class(package)())
    assert trainer.current_epoch == 1
    assert float(checkpoint.best_model_score) == float(trainer.callback_metrics[key])
    assert Path(checkpoint.best_model_path).is_file()
    assert len(list((tmp_path / "orthogonal").iterdir())) == 1
    for callback in trainer.callbacks[:2]:
        assert isinstance(callback, callbacks.Callback)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PACKAGES)
def test_the_command_line_makes_the_callbacks(name: str, tmp_path: Path) -> None:
    package = pytest.importorskip(name)
    cli = importlib.import_module(f"{name}.cli").LightningCLI
    made = cli(
        module_class(package),
        run=False,
        save_config_callback=None,
        args={
            "trainer": {
                "accelerator": "cpu",
                "logger": False,
                "default_root_dir": str(tmp_path),
                "callbacks": [
                    {
                        "class_path": "lightly_collapse.callbacks.CollapseMonitor",
                        "init_args": {"layers": ["backbone"], "every_n_steps": 2},
                    },
                    {
                        "class_path": "lightly_collapse.callbacks.OrthogonalityCallback",
                        "init_args": {"kind": "srip", "weight": 1e-4},
                    },
                    {
                        "class_path": "lightly_collapse.callbacks.RegularizerSchedule",
                        "init_args": {"warmup_epochs": 10},
                    },
                ],
            }
        },
    )
    monitor, orthogonality, schedule = made.trainer.callbacks[:3]
    assert isinstance(monitor, CollapseMonitor)
    assert monitor.every_n_steps == 2
    assert isinstance(orthogonality, OrthogonalityCallback)
    assert orthogonality.kind == "srip"
    assert isinstance(schedule, RegularizerSchedule)
