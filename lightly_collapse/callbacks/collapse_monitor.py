"""A Lightning callback that logs how many dimensions the layers of an encoder use."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn
from typing_extensions import override

from lightly_collapse.callbacks._base import Callback
from lightly_collapse.callbacks._figures import log_figure, spectrum_figures, takes_figures
from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics.channels import Channels, check_channels
from lightly_collapse.metrics.features import Tokens, check_tokens
from lightly_collapse.tracking import CollapseAlarm, CollapseTracker
from lightly_collapse.tracking.collector import LayerCollector, LayerReading
from lightly_collapse.tracking.table import ReadingsTable
from lightly_collapse.tracking.tracker import (
    line_of,
    resume_table,
    scalars_of,
    stops,
    watched,
    write_row,
)


class CollapseMonitor(Callback):
    """Logs collapse metrics of named layers every epoch, with no change to the user's module.

    Forward hooks collect what the layers give during validation or, where the trainer has no
    validation loop, during training (with the weights and the mode of each step). At the end of
    the epoch every metric is logged through the module under `collapse/<layer>/<metric>`, so that
    `EarlyStopping(monitor="collapse/backbone/rankme")` works; the spectra are drawn to loggers that
    take figures or images, `collapse.csv` gets a row and `collapse-spectra.json` the spectra. With
    `every_n_steps` a `lightly_collapse.tracking.CollapseTracker` reads the training steps instead.
    Training goes on bit by bit as without it, and neither a logger nor a layer that cannot be
    measured ends it.

    The metrics are those of `lightly_collapse.metrics.collapse_metrics` and, of a sample of the
    rows, `mlid` (the geometric mean of the local intrinsic dimensionality), `two_nn` and
    `uniformity`; `dimensions` is the width of the layer. A metric that cannot be computed, say
    because every feature is zero, is logged as nan with a warning. Of a layer whose forward is
    never called nothing is logged; the warning names the modules inside it that were. Rows that
    hold NaN or inf are left out and counted in `dropped`.

    For `pytorch_lightning.Trainer` and `lightning.pytorch.Trainer` alike.

    Args:
        layers: names of the layers, as in the LightningModule's `named_modules()`.
        every_n_epochs: measure in every n-th epoch, the first included.
        every_n_steps: measure every n-th optimizer step of training instead.
        alarm: what is to be warned of; see `lightly_collapse.tracking.CollapseAlarm`.
        tokens: which tokens of a sequence are rows; see `lightly_collapse.metrics.FeatureHooks`.
            `auto` logs class token and patches as two layers, `<layer>.cls` and `<layer>.patch`.
        channels: the axis of the channels, where it cannot be told from the layers.
        prefix: number of prefix tokens, where it cannot be found.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of `mlid`.
        lid_size: number of rows sampled at most for `mlid`, `two_nn` and `uniformity`.
        dirpath: folder of `collapse.csv` and `collapse-spectra.json`; the trainer's log folder by
            default.
        reference: frozen model that `gram_drift` of the patch tokens is measured from, by name of
            the module that it is the counterpart of, as `{"backbone": earlier}`; see
            `lightly_collapse.tracking.CollapseTracker`.

    Attributes:
        line: the last reading in a line, as `rank 143/512, mLID 11.2`.

    Raises:
        ValueError: if an argument is out of range; at the start of the fit if a layer does not
            exist.
        lightly_collapse.tracking.CollapseError: if the alarm was told to raise.

    Examples:
        >>> monitor = CollapseMonitor(layers=("backbone", "projection_head"))
        >>> trainer = pl.Trainer(callbacks=[monitor], logger=False)
    """

    def __init__(
        self,
        layers: Sequence[str] = ("backbone",),
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        alarm: CollapseAlarm | None = None,
        tokens: Tokens = "auto",
        channels: Channels = "auto",
        prefix: int | None = None,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 2000,
        dirpath: str | Path | None = None,
        reference: nn.Module | Mapping[str, nn.Module] | None = None,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if isinstance(layers, str):
            layers = (layers,)
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        check_tokens(tokens)
        check_channels(channels)
        self.layers = tuple(dict.fromkeys(layers))
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.alarm = alarm
        self.dirpath = dirpath
        self.line = ""
        self._settings: dict[str, Any] = {
            "tokens": tokens,
            "channels": channels,
            "prefix": prefix,
            "rtol": rtol,
            "lid_k": lid_k,
            "lid_size": lid_size,
            "reference": reference,
        }
        self._collector: LayerCollector | None = None
        self._tracker: CollapseTracker | None = None
        self._table: ReadingsTable | None = None
        self._failed_loggers: set[str] = set()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook the layers."""
        folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
        writes = not getattr(trainer, "fast_dev_run", False)
        if self.every_n_steps is not None:
            self._tracker = CollapseTracker(
                pl_module,
                self.layers,
                self.every_n_steps,
                alarm=self.alarm,
                dirpath=folder if writes else None,
                **self._settings,
            )
            return
        self._collector = LayerCollector(pl_module, self.layers, **self._settings)
        self._table = ReadingsTable(folder / "collapse.csv", "epoch") if writes else None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what an earlier part of a resumed fit wrote; only now the epoch is known."""
        if self._table is not None and self._collector is not None:
            resume_table(self._table, trainer.current_epoch, self._collector)
        if self._tracker is not None:
            self._tracker.resume(trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Log what the tracker read, where it was due."""
        if self._tracker is None:
            return
        # Manual optimization may take several steps a batch, gradient accumulation none.
        while self._tracker.steps < trainer.global_step:
            readings = self._tracker.step()
            if readings is None:
                continue
            self.line = self._tracker.line
            trainer.should_stop |= self._tracker.should_stop
            pl_module.log_dict(readings, on_step=True, on_epoch=False, logger=False)
            steps = self._tracker.steps
            for logger in trainer.loggers:  # now, not when Lightning's own interval comes round
                self._try(logger, "readings", lambda to: to.log_metrics(readings, step=steps))  # noqa: B023
            self._draw(trainer, self._tracker.layer_readings, f"step {self._tracker.steps}")

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to collect, where there is no validation loop."""
        if not trainer.enable_validation:
            self._begin(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what training collected."""
        self._finish(trainer, pl_module)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to collect; the sanity check before training is no epoch."""
        if not trainer.sanity_checking:
            self._begin(trainer)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what validation collected."""
        self._finish(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks."""
        self._detach()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        self._detach()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the hooks."""
        self._detach()

    def _detach(self) -> None:
        if self._collector is not None:
            self._collector.remove()
            self._collector = None
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    def _begin(self, trainer: pl.Trainer) -> None:
        if self._collector is not None:
            self._collector.active = trainer.current_epoch % self.every_n_epochs == 0
            self._collector.reset()

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        collector = self._collector
        if collector is None or not collector.active:
            return
        collector.active = False
        layers = collector.compute()
        collector.reset()
        readings = scalars_of(layers)
        self.line = line_of(layers)
        with watched(self.alarm, trainer.global_step, readings, collector) as warning:
            pl_module.log_dict(readings, on_step=False, on_epoch=True, sync_dist=True)
            self._draw(trainer, layers, f"epoch {trainer.current_epoch}")
            if self._table is not None:
                key = {"epoch": trainer.current_epoch, "step": trainer.global_step}
                write_row(self._table, key, readings, layers, collector, warning)
        if warning is not None and stops(self.alarm):
            trainer.should_stop = True

    def _draw(self, trainer: pl.Trainer, layers: dict[str, LayerReading], title: str) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        figures: dict[str, Any] = {}

        def draw(logger: Any) -> None:
            if not takes_figures(logger):
                return
            if not figures:
                readings = {layer: found.reading for layer, found in layers.items()}
                figures.update(spectrum_figures(readings, title))
            for layer, figure in figures.items():
                log_figure(logger, f"collapse/{layer}/spectrum", figure, trainer.global_step)

        for logger in trainer.loggers:
            self._try(logger, "spectrum", draw)

    def _try(self, logger: Any, what: str, act: Callable[[Any], Any]) -> None:
        """Hand something to a logger; one that fails is warned of once, and ends no training."""
        name = type(logger).__name__
        try:
            act(logger)
        except Exception as error:  # of the logger's service, network or disk
            if f"{name} {what}" not in self._failed_loggers:
                self._failed_loggers.add(f"{name} {what}")
                pl.utilities.rank_zero_warn(f"{name} does not take the {what}: {error}")
