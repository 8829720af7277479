"""Regularizer weights that change from epoch to epoch."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightly_collapse.callbacks._base import Callback
from lightly_collapse.callbacks._target import find_target

Schedule = Callable[[int], float]


class WeightSchedule:
    """The factor on a regularizer's weight, by epoch.

    Args:
        warmup_epochs: number of epochs from the first during which the factor is zero.
        schedule: from the epoch, counted from 0, to the factor after them; 1 by default.

    Raises:
        ValueError: if `warmup_epochs` is negative; when called, if `schedule` gives a factor that
            is negative or not finite.

    Examples:
        >>> factor = WeightSchedule(warmup_epochs=10)
        >>> factor(9), factor(10)
        (0.0, 1.0)
    """

    def __init__(self, warmup_epochs: int = 0, schedule: Schedule | None = None) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}")
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule

    def __call__(self, epoch: int) -> float:
        """The factor in an epoch counted from 0."""
        if epoch < self.warmup_epochs:
            return 0.0
        factor = 1.0 if self.schedule is None else float(self.schedule(epoch))
        if not 0 <= factor < float("inf"):
            raise ValueError(
                f"schedule must give finite factors that are not negative, got {factor} "
                f"for epoch {epoch}"
            )
        return factor


class RegularizerSchedule(Callback):
    """Sets the weight of a regularizer in the user's module by epoch.

    Works on any module with a number `weight`, such as `LDRegularizer` and
    `OrthogonalityRegularizer`, which is multiplied by a factor in each training epoch and comes
    back to what it was when training ends.

    For `pytorch_lightning.Trainer` and `lightning.pytorch.Trainer` alike.

    Args:
        target: dotted name of the regularizer in the LightningModule.
        warmup_epochs: number of epochs from the first during which the weight is zero.
        schedule: from the epoch, counted from 0, to the factor after them; 1 by default.

    Raises:
        ValueError: if `warmup_epochs` is negative; at the start of training, if the target does
            not exist or has no such weight.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474: their regularizer is off for the
    first 10 epochs.

    Examples:
        >>> callback = RegularizerSchedule(target="regularizer", warmup_epochs=10)
        >>> decay = RegularizerSchedule("regularizer", schedule=lambda epoch: 0.9**epoch)
    """

    def __init__(
        self,
        target: str = "regularizer",
        warmup_epochs: int = 0,
        schedule: Schedule | None = None,
    ) -> None:
        self.target = target
        self.factor = WeightSchedule(warmup_epochs, schedule)
        self._regularizer: Any = None
        self._weight = 0.0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the regularizer and remember its weight."""
        regularizer: Any = find_target(pl_module, self.target)
        weight = getattr(regularizer, "weight", None)
        if isinstance(weight, Tensor) or not isinstance(weight, (int, float)):
            raise ValueError(
                f"target {self.target!r} must be a regularizer with a number as its weight, "
                f"got {type(regularizer).__name__}"
            )
        self._regularizer, self._weight = regularizer, weight

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the weight of this epoch."""
        self._regularizer.weight = self._weight * self.factor(trainer.current_epoch)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the regularizer its own weight back, after errors too."""
        if self._regularizer is not None:
            self._regularizer.weight = self._weight
            self._regularizer = None
