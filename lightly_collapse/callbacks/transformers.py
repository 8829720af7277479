"""Callbacks of transformers' `Trainer`; needs the package `transformers`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from typing_extensions import override

from lightly_collapse.callbacks._target import find_target
from lightly_collapse.functional.orthogonality import PenaltyKind
from lightly_collapse.loss import OrthogonalityRegularizer
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.tracking import CollapseAlarm, CollapseTracker


class CollapseCallback(TrainerCallback):
    """Reads collapse metrics every n-th step of transformers' `Trainer`.

    An adapter of `lightly_collapse.tracking.CollapseTracker`. The readings are appended to
    `trainer.state.log_history`, and `collapse.csv` in the output folder gets a row. A callback
    cannot reach the trainer's loggers; give it the trainer's `log` and the readings go there:
    `callback.log = trainer.log`.

    Args:
        layers: names of the layers, as in the model's `named_modules()`.
        every_n_steps: number of optimizer steps from one reading to the next.
        tokens: which tokens of a sequence are rows; see `lightly_collapse.metrics.FeatureHooks`.
        alarm: what is to be warned of.
        dirpath: folder of `collapse.csv`; the trainer's output folder by default.
        **settings: of `CollapseTracker`.

    Attributes:
        log: what readings are handed to; by default the trainer's log history.
        line: the last reading in a line, as `rank 143/512, mLID 11.2`.

    Raises:
        ValueError: at the start of training, as `CollapseTracker`.

    Examples:
        >>> callback = CollapseCallback(layers=("vit.layernorm",), every_n_steps=50)
        >>> callback.layers
        ('vit.layernorm',)
    """

    def __init__(
        self,
        layers: Sequence[str] = ("backbone",),
        every_n_steps: int = 100,
        tokens: Tokens = "auto",
        alarm: CollapseAlarm | None = None,
        dirpath: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.log: Callable[[dict[str, float]], Any] | None = None
        self.line = ""
        self._arguments = (every_n_steps, tokens, alarm)
        self._dirpath = dirpath
        self._settings = settings
        self._tracker: CollapseTracker | None = None

    @override
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Hook the layers."""
        if model is not None:
            self._tracker = CollapseTracker(
                model,
                self.layers,
                *self._arguments,
                dirpath=self._dirpath or args.output_dir,
                initial_step=state.global_step,
                **self._settings,
            )

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the metrics, where they are due."""
        while self._tracker is not None and self._tracker.steps < state.global_step:
            readings = self._tracker.step()
            if readings is None:
                continue
            self.line = self._tracker.line
            if self._tracker.should_stop:
                control.should_training_stop = True
            if self.log is not None:
                self.log(readings)
            else:
                state.log_history.append({**readings, "step": state.global_step})

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove the hooks."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


class OrthogonalityCallback(TrainerCallback):
    """Adds the gradient of `OrthogonalityRegularizer` once before each optimizer step.

    transformers' `Trainer` clips the gradients (`max_grad_norm`) before its callbacks are called:
    the penalty's gradient is added to the clipped one.

    Args:
        kind: see `lightly_collapse.loss.OrthogonalityRegularizer`.
        weight: gamma.
        target: dotted name of the module to regularize in the model; the whole of it by default.
        **settings: of `OrthogonalityRegularizer`.

    Raises:
        ValueError: at the start of training, as `OrthogonalityRegularizer`, or if the target does
            not exist.

    Examples:
        >>> callback = OrthogonalityCallback(kind="so", weight=1e-6, target="vit")
    """

    def __init__(
        self, kind: PenaltyKind = "so", weight: float = 1e-6, target: str = "", **settings: Any
    ) -> None:
        self.target = target
        self._settings = {"kind": kind, "weight": weight, **settings}
        self.regularizer: OrthogonalityRegularizer | None = None

    @override
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Find the weights."""
        if model is not None:
            module = find_target(model, self.target)
            self.regularizer = OrthogonalityRegularizer(module, **self._settings)

    @override
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the gradient."""
        if self.regularizer is not None:
            self.regularizer.accumulate_gradient()

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the references to the weights."""
        self.regularizer = None
