"""Orthogonality regularization with no change to the user's module."""

from collections.abc import Sequence
from typing import Literal

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightly_collapse.callbacks._base import Callback
from lightly_collapse.callbacks._target import find_target, frozen_message, make_regularizer
from lightly_collapse.callbacks.schedule import Schedule, WeightSchedule
from lightly_collapse.functional.orthogonality import PenaltyKind
from lightly_collapse.loss import OrthogonalityRegularizer


class OrthogonalityCallback(Callback):
    """Adds the gradient of `OrthogonalityRegularizer` once before each optimizer step.

    After the gradients were accumulated, averaged over processes and unscaled, and before the
    trainer's `gradient_clip_val` clips them; an optimizer's step adds the gradient of its own
    parameters. So it is the gradient that the penalty would have, had it been added to the loss,
    with automatic and manual optimization alike. With manual optimization a `self.clip_gradients`
    of the user's own runs before the optimizer's step, hence before the penalty, which is then not
    clipped; to clip both, add `OrthogonalityRegularizer` to the loss.

    The sum of the layers' unweighted penalties is logged as `orthogonality/<target>`, with the kind
    appended where several of these callbacks have one target. While all weights of the target are
    frozen, nothing is added; once some thaw, they are regularized. For `pytorch_lightning.Trainer`
    and `lightning.pytorch.Trainer` alike.

    Args:
        kind: `so`, `dso`, `mc`, `srip` or `conv`; see `OrthogonalityRegularizer`.
        weight: gamma; `auto` for a strength that needs no sweep: no gradient is added, but after
            every step of the optimizer the weights move a part of a Newton-Schulz step towards
            orthonormal filters, as `OrthogonalityRegularizer.attach` has it; nothing is logged.
        target: dotted name of the module to regularize in the LightningModule; the whole of it for
            the empty name.
        include: regular expressions; only parameters in whose name, within the target, one of them
            is found are regularized.
        exclude: regular expressions; parameters in whose name one of them is found are left out.
        split_qkv: take queries, keys and values of a fused weight apart.
        warmup_epochs: number of epochs from the first during which nothing is added.
        schedule: from the epoch, counted from 0, to a factor on the weight after them.
        log: log the penalty.

    Raises:
        ValueError: at the start of training, if the target does not exist (the message lists what
            does) or as `OrthogonalityRegularizer`.

    Source: He, Du and Ma, NeurIPS 2024, arXiv 2411.00392.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> callback = OrthogonalityCallback(kind="so", weight=1e-6, target="backbone")
        >>> trainer = Trainer(accelerator="cpu", callbacks=[callback], logger=False)
    """

    def __init__(
        self,
        kind: PenaltyKind = "so",
        weight: float | Literal["auto"] = 1e-6,
        target: str = "backbone",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        split_qkv: bool = False,
        warmup_epochs: int = 0,
        schedule: Schedule | None = None,
        log: bool = True,
    ) -> None:
        self.kind = kind
        self.weight = weight
        self.target = target
        self.include = include
        self.exclude = exclude
        self.split_qkv = split_qkv
        self.factor = WeightSchedule(warmup_epochs, schedule)
        self.log = log
        self.regularizer: OrthogonalityRegularizer | None = None
        self._module: nn.Module | None = None
        self._handles: dict[int, RemovableHandle] = {}
        self._key = ""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights, when the module stands as it will be trained."""
        self._module = find_target(pl_module, self.target)
        self._key = self._log_key(trainer)
        self.regularizer = self._make()
        if self.regularizer is None:
            rank_zero_warn(frozen_message(pl_module, self.target))

    def _make(self) -> OrthogonalityRegularizer | None:
        """The regularizer; None while all weights are frozen."""
        if self._module is None:
            return None
        return make_regularizer(
            self._module,
            kind=self.kind,
            weight=self.weight,
            include=self.include,
            exclude=self.exclude,
            split_qkv=self.split_qkv,
        )

    def _log_key(self, trainer: Trainer) -> str:
        callbacks: list[object] = list(trainer.callbacks)  # type: ignore[attr-defined]
        same = [
            c for c in callbacks if isinstance(c, OrthogonalityCallback) and c.target == self.target
        ]
        key = f"orthogonality/{self.target or 'module'}"
        if len(same) < 2:
            return key
        alike = [c for c in same if c.kind == self.kind]
        number = f"-{alike.index(self) + 1}" if len(alike) > 1 else ""
        return f"{key}/{self.kind}{number}"

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the optimizer's parameters."""
        factor = self.factor(trainer.current_epoch)
        if self.regularizer is None:
            self.regularizer = self._make()
        if isinstance(self.weight, str):
            self._follow(optimizer, factor)
            return
        weight = self.weight * factor
        if self.regularizer is None or weight == 0:
            return
        self.regularizer.weight = weight
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # A fused optimizer unscales the gradients within its step.
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        penalty = self.regularizer.accumulate_gradient(
            (p for group in optimizer.param_groups for p in group["params"]),
            scale=scaler.get_scale() if scaler is not None and scaled else 1.0,
        )
        if self.log and penalty is not None:
            pl_module.log(self._key, penalty)

    def _follow(self, optimizer: Optimizer, factor: float) -> None:
        """Move the weights after this step of the optimizer."""
        if self.regularizer is None:
            return
        self.regularizer.factor = factor
        if id(optimizer) not in self._handles:
            self._handles[id(optimizer)] = self.regularizer.attach(optimizer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers alone."""
        self._detach()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the optimizers alone."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the references to the weights."""
        self.regularizer = self._module = None
