"""A Lightning callback that logs how many dimensions the layers of an encoder use."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.files import atomic_write
from lightly_collapse.metrics import FeatureHooks, LayerMetrics
from lightly_collapse.metrics.features import Positions, check_positions, find_layers
from lightly_collapse.report.pages.plots import log_lines


class CollapseMonitor(pl.Callback):
    """Logs collapse metrics of named layers every epoch, with no change to the user's module.

    Forward hooks collect what the layers give during validation or, where the trainer has no
    validation loop, during training (with the weights and the mode of each step). At the end of
    the epoch every metric is logged through the module under `collapse/<layer>/<metric>`, so that
    `EarlyStopping(monitor="collapse/backbone/rankme")` works; the spectra are drawn to loggers that
    take figures (TensorBoard, Weights & Biases) and `collapse.csv` gets a row. Training goes on bit
    by bit as without it.

    The metrics are those of `lightly_collapse.metrics.collapse_metrics` and, of a sample of the
    rows, `mlid` (the geometric mean of the local intrinsic dimensionality), `two_nn` and
    `uniformity`. A metric that cannot be computed, say because every feature is zero, is logged as
    nan with a warning. Rows that hold NaN or inf are left out and counted in `dropped`.

    Args:
        layers: names of the layers, as in the LightningModule's `named_modules()`.
        every_n_epochs: measure in every n-th epoch, the first included.
        positions: `mean` over the positions of a sample, or `all` of them as rows; see
            `lightly_collapse.metrics.feature_rows`.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of `mlid`.
        lid_size: number of rows sampled at most.
        dirpath: folder of `collapse.csv`; the trainer's log folder by default.

    Raises:
        ValueError: if an argument is out of range; at the start of the fit if a layer does not
            exist.

    Examples:
        >>> monitor = CollapseMonitor(layers=("backbone", "projection_head"))
        >>> trainer = pl.Trainer(callbacks=[monitor], logger=False)
    """

    def __init__(
        self,
        layers: Sequence[str] = ("backbone",),
        every_n_epochs: int = 1,
        positions: Positions = "mean",
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 2000,
        dirpath: str | Path | None = None,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if isinstance(layers, str):
            layers = (layers,)
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        check_positions(positions)
        self.layers = tuple(dict.fromkeys(layers))
        self.every_n_epochs = every_n_epochs
        self.positions = positions
        self.dirpath = dirpath
        self._probes = {name: LayerMetrics(rtol, lid_k, lid_size) for name in self.layers}
        self._taps: FeatureHooks | None = None
        self._active = False
        self._rows: dict[int, dict[str, Any]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook the layers."""
        find_layers(pl_module, self.layers)
        self._active = False
        self._taps = FeatureHooks(pl_module, self.layers, self._take, self.positions)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what an earlier part of a resumed fit wrote; only now the epoch is known."""
        self._rows = _read_csv(self._csv_path(trainer), trainer.current_epoch)

    def _take(self, layer: str, rows: Tensor) -> None:
        if self._active:
            self._probes[layer].update(rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to collect, where there is no validation loop."""
        if not trainer.enable_validation:
            self._begin(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what training collected."""
        self._finish(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to collect; the sanity check before training is no epoch."""
        if self._taps is not None and not trainer.sanity_checking:
            self._begin(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what validation collected."""
        self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the hooks off."""
        self._detach()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off."""
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._detach()

    def _detach(self) -> None:
        self._active = False
        if self._taps is not None:
            self._taps.remove()
            self._taps = None

    def _begin(self, trainer: pl.Trainer) -> None:
        self._active = trainer.current_epoch % self.every_n_epochs == 0
        for probe in self._probes.values():
            probe.reset()

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._active:
            return
        self._active = False
        writes = trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        for layer, probe in self._probes.items():
            reading = probe.compute()
            _warn(layer, reading.problems)
            pl_module.log_dict(
                {f"collapse/{layer}/{name}": value for name, value in reading.scalars.items()},
                on_step=False,
                on_epoch=True,
                sync_dist=True,
            )
            row |= {f"{layer}/{name}": value for name, value in reading.scalars.items()}
            if writes and reading.spectrum is not None:
                fig = log_lines(
                    {layer: (reading.spectrum / reading.spectrum[0]).tolist()},
                    "singular value / largest",
                    title=f"epoch {trainer.current_epoch}",
                )
                for logger in trainer.loggers:
                    _log_figure(logger, f"collapse/{layer}/spectrum", fig, trainer.global_step)
            probe.reset()
        self._rows[trainer.current_epoch] = row
        path = self._csv_path(trainer)  # asks all processes, so outside the condition
        if writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, _csv(list(self._rows.values())))

    def _csv_path(self, trainer: pl.Trainer) -> Path:
        folder = trainer.log_dir or trainer.default_root_dir
        return Path(self.dirpath or folder) / "collapse.csv"


def _warn(layer: str, problems: Mapping[str, str]) -> None:
    for reason in dict.fromkeys(problems.values()):
        names = ", ".join(name for name, other in problems.items() if other == reason)
        rank_zero_warn(f"CollapseMonitor: {layer}: {names} cannot be computed: {reason}")


def _log_figure(logger: Logger, name: str, fig: Figure, step: int) -> None:
    """Hand the figure to a logger that takes one; others take numbers only."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):  # TensorBoard
        experiment.add_figure(name, fig, global_step=step)
    elif hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=name, images=[fig], step=step)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _read_csv(path: Path, before_epoch: int) -> dict[int, dict[str, Any]]:
    """The rows of earlier epochs, where a fit is resumed in the same folder."""
    if not before_epoch or not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit()]
    return {int(row["epoch"]): row for row in rows if int(row["epoch"]) < before_epoch}
