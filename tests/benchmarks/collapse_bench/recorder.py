"""What is recorded while a run trains, besides the tracker's readings."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.accuracy import knn_accuracy

BANK, HELD_OUT = 384, 256
"""Images of the kNN vote during training."""


class Recorder(pl.Callback):
    """Loss, kNN accuracy of held-out images by step, and the backbone at some steps.

    Writes `step<N>.ckpt`, in the form of `pretrain`, and at the end, also where training diverged,
    `recorder.json` with `losses` of every step and `knn`, in [0, 1], at `knn_steps`.

    Args:
        dirpath: folder to write to.
        every_n_steps: of the kNN vote.
        checkpoints: steps after which the backbone is kept.
    """

    def __init__(self, dirpath: str, every_n_steps: int, checkpoints: list[int]) -> None:
        self.dirpath, self.every_n_steps = Path(dirpath), every_n_steps
        self.checkpoints = set(checkpoints)
        self._record: dict[str, list[Any]] = {"losses": [], "knn_steps": [], "knn": []}
        self._images: list[tuple[Tensor, Tensor]] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the images of the vote, and vote with random weights."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._images = [
            _first(part, count)
            for part, count in zip(data.evaluation_arrays(), (BANK, HELD_OUT), strict=True)
        ]
        self._after(0, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Record the step."""
        self._record["losses"].append(round(float(outputs["loss"]), 5))
        self._after(trainer.global_step, pl_module)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record."""
        self._write()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that diverged."""
        self._write()

    def _write(self) -> None:
        atomic_write(self.dirpath / "recorder.json", json.dumps(self._record).encode())

    def _after(self, step: int, method: Any) -> None:
        if step in self.checkpoints:
            state = {f"backbone.{n}": v for n, v in method.backbone.state_dict().items()}
            content: dict[str, Any] = {"state_dict": state}
            method.on_save_checkpoint(content)
            atomic_write(self.dirpath / f"step{step}.ckpt", lambda file: torch.save(content, file))
        if step % self.every_n_steps:
            return
        method.eval()
        with torch.no_grad():
            bank, held_out = ((method.backbone(x), y) for x, y in self._images)
        method.train()
        finite = bool(bank[0].isfinite().all() and held_out[0].isfinite().all())
        self._record["knn_steps"].append(step)
        self._record["knn"].append(knn_accuracy(*bank, *held_out) if finite else None)


def _first(part: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    images, labels = part
    return images[:count], labels[:count]
