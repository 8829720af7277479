"""Orthogonality regularization with no change to the user's module."""

from collections.abc import Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightly_collapse.callbacks._target import find_target
from lightly_collapse.callbacks.schedule import Schedule, WeightSchedule
from lightly_collapse.loss import OrthogonalityRegularizer


class OrthogonalityCallback(Callback):
    """Adds the gradient of `OrthogonalityRegularizer` once before each optimizer step.

    After the gradients were accumulated, averaged over processes and unscaled, and before they are
    clipped; an optimizer's step adds the gradient of its own parameters. So it is the gradient that
    the penalty would have, had it been added to the loss, with automatic and manual optimization
    alike. The sum of the layers' unweighted penalties is logged as `orthogonality/<target>`.

    Args:
        kind: `so`, `dso`, `mc`, `srip` or `conv`; see `OrthogonalityRegularizer`.
        weight: gamma.
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
        kind: str = "so",
        weight: float = 1e-6,
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights, when the module stands as it will be trained."""
        self.regularizer = OrthogonalityRegularizer(
            find_target(pl_module, self.target),
            kind=self.kind,
            weight=self.weight,
            include=self.include,
            exclude=self.exclude,
            split_qkv=self.split_qkv,
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the optimizer's parameters."""
        weight = self.weight * self.factor(trainer.current_epoch)
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
            pl_module.log(f"orthogonality/{self.target or 'module'}", penalty)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the weights go."""
        self.regularizer = None
