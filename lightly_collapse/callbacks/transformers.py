"""Callbacks of transformers' `Trainer`; needs the package `transformers`."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from typing_extensions import override

from lightly_collapse.callbacks._target import find_target, frozen_message, make_regularizer
from lightly_collapse.functional.orthogonality import PenaltyKind
from lightly_collapse.loss import FrozenWeightsError, OrthogonalityRegularizer
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
        self._close()  # a training that was interrupted has no end
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
        self._close()

    def _close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


class OrthogonalityCallback(TrainerCallback):
    """Adds the gradient of `OrthogonalityRegularizer` once before each optimizer step.

    transformers' `Trainer` clips the gradients (`max_grad_norm`) before its callbacks are called:
    the penalty's gradient is added to the clipped one. While all weights of the target are frozen,
    nothing is added; once some thaw, they are regularized.

    Args:
        kind: see `lightly_collapse.loss.OrthogonalityRegularizer`.
        weight: gamma; `auto` moves the weights after every step of the optimizer instead of adding
            a gradient, as `OrthogonalityRegularizer.attach` has it.
        target: dotted name of the module to regularize in the model; the whole of it by default.
        **settings: of `OrthogonalityRegularizer`.

    Attributes:
        penalty: the unweighted penalty at the last step; None before, and with `auto`.

    Raises:
        ValueError: at the start of training, as `OrthogonalityRegularizer`, or if the target does
            not exist.

    Examples:
        >>> callback = OrthogonalityCallback(kind="so", weight=1e-6, target="vit")
    """

    def __init__(
        self,
        kind: PenaltyKind = "so",
        weight: float | Literal["auto"] = 1e-6,
        target: str = "",
        **settings: Any,
    ) -> None:
        self.target = target
        self.penalty: Tensor | None = None
        self.regularizer: OrthogonalityRegularizer | None = None
        self._settings = {"kind": kind, "weight": weight, **settings}
        self._module: nn.Module | None = None
        self._handle: RemovableHandle | None = None

    @override
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Find the weights."""
        if model is None:
            return
        self._module = find_target(model, self.target)
        self.regularizer = make_regularizer(self._module, **self._settings)
        if self.regularizer is None and state.is_world_process_zero:
            warnings.warn(frozen_message(model, self.target), stacklevel=2)

    @override
    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Add the gradient."""
        if self.regularizer is None and self._module is not None:
            self.regularizer = make_regularizer(self._module, **self._settings)
        if self.regularizer is None:
            return
        if self.regularizer.weight == "auto":
            if self._handle is None:
                # Accelerate wraps the optimizer; the step's hooks are those of the one within.
                self._handle = self.regularizer.attach(getattr(optimizer, "optimizer", optimizer))
            return
        # The trainer unscales the gradients where it clips them, and only there.
        scaler = None if args.max_grad_norm else getattr(optimizer, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        try:
            self.penalty = self.regularizer.accumulate_gradient(scale=scale)
        except FrozenWeightsError:  # frozen again
            self.penalty = None

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the references to the weights."""
        if self._handle is not None:
            self._handle.remove()
        self.regularizer = self._module = self._handle = None
