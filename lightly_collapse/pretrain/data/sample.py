"""The views of a training, as its steps get them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.data.base import PretrainData


def sample_views(
    data: PretrainData,
    encoders: Sequence[Callable[[Tensor], Tensor]],
    images: int,
    global_views: int = 2,
) -> list[Tensor]:
    """The features of two full-size views of some training images.

    The batches come through Lightning's own loop, as in training, whatever the data module does to
    them on the way.

    Args:
        data: not yet set up; it is of no use to another trainer afterwards.
        encoders: from (n, 3, height, width) to (n, D), without gradient.
        images: how many images at least; all where there are fewer.
        global_views: how many full-size views the method takes.

    Returns:
        (n, 2, D) float32, one for each encoder.

    Raises:
        ValueError: if there are fewer than two full-size views, or the data are at fault.
    """
    if global_views < 2:
        raise ValueError(f"the method must take two full-size views, got {global_views}")
    data.prepare_data()
    data.setup("fit")
    data.batch_size = min(data.batch_size, data.train_count)
    sampler = _Sampler(encoders, global_views)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=min(-(-images // data.batch_size), data.train_count // data.batch_size),
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(sampler, datamodule=data)
    return [torch.cat(parts).float() for parts in sampler.features]


class _Sampler(pl.LightningModule):
    """Encodes the views of every step and trains nothing."""

    def __init__(self, encoders: Sequence[Callable[[Tensor], Tensor]], global_views: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._encoders = list(encoders)  # in a list they are no part of this module
        self.global_views = global_views
        self.features: list[list[Tensor]] = [[] for _ in self._encoders]

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Encode two views."""
        views = batch[0][:2]
        with torch.no_grad():
            for encode, parts in zip(self._encoders, self.features, strict=True):
                parts.append(torch.stack([encode(view).flatten(1) for view in views], dim=1))

    @override
    def configure_optimizers(self) -> list[Any]:
        """None."""
        return []
