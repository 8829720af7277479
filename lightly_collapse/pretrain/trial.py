"""Short trainings from one checkpoint, with a remedy each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.functional import effective_rank
from lightly_collapse.pretrain.configs import merge
from lightly_collapse.pretrain.evaluate import data_module
from lightly_collapse.pretrain.methods.base import DivergedError, Method
from lightly_collapse.pretrain.runs import build_method, load_weights
from lightly_collapse.report.diagnosis import Remedy, Trial

AS_IT_IS = "as it is"
_ENDS = 10


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.values.append(float(outputs["loss"]))


def run_trials(
    config: Mapping[str, Any],
    checkpoint: Path,
    remedies: Sequence[Remedy],
    steps: int,
    seed: int = 0,
) -> list[Trial]:
    """Train from a checkpoint as the run was, and with each remedy that is a setting.

    Every trial begins with the checkpoint's weights (where a remedy adds or changes a layer, that
    layer is new) and a new optimizer, and sees the same images in the same order.

    Args:
        config: of the run.
        checkpoint: of the run.
        remedies: those without settings are passed over.
        steps: optimizer steps of each.
        seed: of everything random.

    Returns:
        One trial each, that of the unchanged run first.

    Raises:
        ValueError: if the configuration or the checkpoint is at fault.
    """
    changes: list[tuple[str, dict[str, Any]]] = [(AS_IT_IS, {})]
    changes += [(r.text, dict(r.settings)) for r in remedies if r.settings]
    return [
        _trial(text, merge(dict(config), change), checkpoint, steps, seed)
        for text, change in changes
    ]


def _trial(text: str, config: Mapping[str, Any], checkpoint: Path, steps: int, seed: int) -> Trial:
    losses = _Losses()
    try:
        pl.seed_everything(seed, verbose=False)
        # The run's warm-up is behind it.
        settings = merge(dict(config["model"]), {"init_args": {"optimizer": {"warmup_epochs": 0}}})
        method = build_method(settings)
        load_weights(method, checkpoint)
        data = data_module(config["data"])
        data.seed = seed
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=steps,
            callbacks=[losses],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(method, datamodule=data)
        rows = _held_out(method, config["data"])
    except DivergedError as error:
        return Trial(text, steps, problem=str(error).partition(";")[0])
    except ValueError as error:  # a remedy does not suit the run, such as more neighbours than rows
        if text == AS_IT_IS:
            raise
        return Trial(text, steps, problem=" ".join(str(error).split()))
    centred = rows - rows.mean(dim=0)
    values = torch.linalg.svdvals(centred)
    ends = max(1, min(_ENDS, len(losses.values) // 2))
    return Trial(
        text,
        steps,
        effective_rank=float(effective_rank(values)) if float(values.sum()) > 0 else 1.0,
        variation=float(centred.square().mean() / rows.square().mean().clamp(min=1e-30)),
        first_loss=sum(losses.values[:ends]) / ends,
        last_loss=sum(losses.values[-ends:]) / ends,
    )


def _held_out(method: Method, settings: Mapping[str, Any]) -> Tensor:
    data = data_module(settings)
    data.prepare_data()
    data.setup("validate")
    method.eval()
    with torch.no_grad():
        parts = [method.backbone(batch[0]) for batch in data.evaluation_batches()[1]]
    return torch.cat(parts).double()
