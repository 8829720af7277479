"""LDReg on a hooked representation, with no change to the user's module."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightly_collapse.callbacks._base import Callback
from lightly_collapse.callbacks.schedule import Schedule, WeightSchedule
from lightly_collapse.loss import LDRegularizer
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.tracking import RepresentationHook


class LDRegCallback(Callback):
    """Adds `LDRegularizer` of a layer's outputs to the loss, before the backward pass.

    A hook takes the layer's outputs of every view in the training step, so that `forward` and
    `training_step` may return the embedding alone. The penalty is logged as `ldreg/<layer>`. For
    `pytorch_lightning.Trainer` and `lightning.pytorch.Trainer` alike; with manual optimization the
    loss given to `self.manual_backward` must not be the output of an operation that keeps it for
    its own gradient, such as `exp`.

    Args:
        weight: beta.
        k: number of neighbours.
        layer: name of the layer, as in the LightningModule's `named_modules()`.
        tokens: of a sequence: `cls`, `mean` of the patches, or `auto`.
        warmup_epochs: number of epochs from the first during which nothing is added.
        schedule: from the epoch, counted from 0, to a factor on the weight after them.
        log: log the penalty.
        **settings: of `LDRegularizer`.

    Raises:
        ValueError: as `LDRegularizer`; at the start of the fit if the layer does not exist; in
            training if it was not called.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474.

    Examples:
        >>> callback = LDRegCallback(weight=0.01, k=64, layer="backbone", warmup_epochs=10)
    """

    def __init__(
        self,
        weight: float = 0.01,
        k: int = 64,
        layer: str = "backbone",
        tokens: Tokens = "auto",
        warmup_epochs: int = 0,
        schedule: Schedule | None = None,
        log: bool = True,
        **settings: Any,
    ) -> None:
        self.regularizer = LDRegularizer(weight=weight, k=k, **settings)
        self.layer = layer
        self.tokens = tokens
        self.weight = weight
        self.factor = WeightSchedule(warmup_epochs, schedule)
        self.log = log
        self._hook: RepresentationHook | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the layer."""
        self._hook = RepresentationHook(pl_module, self.layer, self.tokens)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Drop what is left of a step that had no backward pass."""
        if self._hook is not None:
            self._hook.clear()

    @override
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Add the penalty to the loss."""
        weight = self.weight * self.factor(trainer.current_epoch)
        if self._hook is None:
            return
        if weight == 0:
            self._hook.clear()
            return
        self.regularizer.weight = weight
        penalty = self.regularizer(*self._hook.views())
        if self.log:
            pl_module.log(f"ldreg/{self.layer or 'module'}", penalty.detach())
        # The loss has been scaled, for half precision and for gradient accumulation.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        if pl_module.automatic_optimization:
            scale /= trainer.accumulate_grad_batches
        loss.add_((penalty * scale).to(loss.dtype))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the hook."""
        self._detach()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hook."""
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook."""
        self._detach()

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.close()
            self._hook = None
