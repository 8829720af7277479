"""Collapse metrics of named layers every so many optimizer steps, in any training loop."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch import nn

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics.channels import Channels
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.tracking.alarm import CollapseAlarm, CollapseError, CollapseWarning
from lightly_collapse.tracking.collector import LayerCollector, LayerReading
from lightly_collapse.tracking.table import ReadingsTable


class CollapseTracker:
    """Measures what layers give in training, every n-th optimizer step.

    Hooks collect the rows of the last `window` steps before a reading is due, and do nothing in
    the steps between. Of a sequence of patch tokens the dense measures are read too, of a sample of
    the images (`lightly_collapse.metrics.TokenMetrics`). Training goes on bit by bit as without it:
    no random number is drawn and no tensor changed. Under torch.distributed (DDP, FSDP2) every
    process must call `step()` and gets the readings of all rows. What activation checkpointing
    computes again is counted once; forward passes in evaluation mode are not counted.

    A layer inside a module that `torch.compile` compiles is traced with its hook, so make the
    tracker before the first call; the compiled module itself can be tracked at any time.

    Args:
        model: the model that is trained.
        layers: names of the layers, as in its `named_modules()`.
        every_n_steps: number of optimizer steps from one reading to the next.
        tokens: which tokens of a sequence are rows; see `lightly_collapse.metrics.FeatureHooks`.
            `auto` reads class token and patches as two layers, `<layer>.cls` and `<layer>.patch`.
        alarm: what is to be warned of; see `CollapseAlarm`.
        window: number of steps before a reading whose rows are collected.
        max_rows: number of rows of a layer that a process collects at most for a reading.
        channels: the axis of the channels, where it cannot be told from the layers.
        prefix: number of prefix tokens, where it cannot be found.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of `mlid`.
        lid_size: number of rows sampled at most for `mlid`, `two_nn` and `uniformity`.
        dirpath: folder in which `collapse.csv` gets a row a reading and `collapse-spectra.json` the
            spectra; nothing is written by default.
        reference: frozen model whose patch similarities `gram_drift` is measured from, such as the
            one of an earlier checkpoint: it is given the same images. Of the whole model, or by
            name of the module that it is the counterpart of, as `{"backbone": earlier}`; that
            module's forward must be called, and not compiled.
        initial_step: number of steps done before, where training is resumed; rows of
            `collapse.csv` from before it are kept.

    Attributes:
        readings: the last readings, by `collapse/<layer>/<metric>`.
        layer_readings: the last readings with their spectra, by layer.
        steps: number of optimizer steps.
        should_stop: whether an alarm with `stop_on_alarm` has been raised.

    Raises:
        ValueError: if an argument is out of range, a layer does not exist, or `reference` fits no
            layer or is a part of the model.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> with CollapseTracker(model, layers=("1",), every_n_steps=5) as tracker:
        ...     for _ in range(5):
        ...         model(torch.randn(16, 4)).square().mean().backward()
        ...         optimizer.step()
        ...         readings = tracker.step()
        >>> int(readings["collapse/1/rows"]), int(readings["collapse/1/dimensions"])
        (80, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] = ("backbone",),
        every_n_steps: int = 100,
        tokens: Tokens = "auto",
        alarm: CollapseAlarm | None = None,
        *,
        window: int = 16,
        max_rows: int = 8192,
        channels: Channels = "auto",
        prefix: int | None = None,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 2000,
        dirpath: str | Path | None = None,
        reference: nn.Module | Mapping[str, nn.Module] | None = None,
        initial_step: int = 0,
    ) -> None:
        counts = {"every_n_steps": every_n_steps, "window": window, "max_rows": max_rows}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if initial_step < 0:
            raise ValueError(f"initial_step must not be negative, got {initial_step}")
        self.steps = 0
        self.should_stop = False
        self.readings: dict[str, float] = {}
        self.layer_readings: dict[str, LayerReading] = {}
        self._every, self._window = every_n_steps, window
        self._alarm = alarm
        self._collector = LayerCollector(
            model,
            (layers,) if isinstance(layers, str) else layers,
            tokens,
            channels,
            prefix,
            rtol,
            lid_k,
            lid_size,
            max_rows,
            training_only=True,
            reference=reference,
        )
        self._table: ReadingsTable | None = None
        if dirpath is not None:
            self._table = ReadingsTable(Path(dirpath) / "collapse.csv", "step")
        self.resume(initial_step)

    def step(self) -> dict[str, float] | None:
        """To be called after every optimizer step, on all processes.

        Returns:
            The readings by `collapse/<layer>/<metric>` where they are due, else None. A layer that
            was not called has none, with a warning that says which ones were.

        Raises:
            CollapseError: if the alarm was told to raise.
        """
        self.steps += 1
        self._collector.flush()
        due = self.steps % self._every == 0
        if due:
            self._read()
        self._open_window()
        return dict(self.readings) if due else None

    def resume(self, step: int) -> None:
        """Go to the number of steps that a checkpoint was written at.

        Args:
            step: number of optimizer steps; rows of `collapse.csv` after it are dropped.
        """
        self.steps = step
        if self._table is not None:
            resume_table(self._table, step + 1 if step else 0, self._collector)
        self._collector.reset()
        self._open_window()

    def _open_window(self) -> None:
        self._collector.active = self._every - self.steps % self._every <= self._window

    def _read(self) -> None:
        self.layer_readings = self._collector.compute()
        self._collector.reset()
        self.readings = scalars_of(self.layer_readings)
        with watched(self._alarm, self.steps, self.readings, self._collector) as warning:
            self.should_stop |= warning is not None and stops(self._alarm)
            if self._table is not None:
                key = {"step": self.steps}
                layers = self.layer_readings
                write_row(self._table, key, self.readings, layers, self._collector, warning)

    @property
    def line(self) -> str:
        """The last reading in a line for progress bars, as `rank 143/512, mLID 11.2`."""
        return line_of(self.layer_readings)

    def close(self) -> None:
        """Remove all hooks; more than once does no harm."""
        self._collector.remove()

    def __enter__(self) -> "CollapseTracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def scalars_of(layers: dict[str, LayerReading]) -> dict[str, float]:
    """The readings of all layers by `collapse/<layer>/<metric>`."""
    return {
        f"collapse/{layer}/{name}": value
        for layer, reading in layers.items()
        for name, value in reading.scalars().items()
    }


def line_of(layers: dict[str, LayerReading]) -> str:
    """Effective rank of the dimensions, and mLID, of every layer in a line."""
    parts = []
    for layer, reading in layers.items():
        scalars = reading.reading.scalars
        line = f"rank {scalars['effective_rank']:.0f}/{reading.dimensions}"
        line += f", mLID {scalars['mlid']:.1f}"
        parts.append(line if len(layers) == 1 else f"{layer}: {line}")
    return "; ".join(parts)


def resume_table(table: ReadingsTable, before: int, collector: LayerCollector) -> None:
    """Take the rows of an earlier part of the run; a file that cannot be read is warned of."""
    try:
        table.resume(before)
    except OSError as error:
        collector.warn("resume", f"{table.path} cannot be read and is written anew: {error}")


def write_row(
    table: ReadingsTable,
    key: dict[str, int],
    readings: dict[str, float],
    layers: Mapping[str, LayerReading],
    collector: LayerCollector,
    warning: CollapseWarning | None = None,
) -> None:
    """Add a row of readings with an alarm's message, and their spectra.

    A disk that cannot be written is warned of once.
    """
    row: dict[str, object] = {n.removeprefix("collapse/"): v for n, v in readings.items()}
    if warning is not None:
        row["alarm_message"] = str(warning)
    spectra = {
        name: found.reading.spectrum.tolist()
        for name, found in layers.items()
        if found.reading.spectrum is not None
    }
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    try:
        table.add({**key, **row}, write=first)
        table.spectra.add(next(iter(key.values())), spectra, write=first)
    except OSError as error:
        collector.warn("table", f"{table.path} cannot be written: {error}")


@contextmanager
def watched(
    alarm: CollapseAlarm | None, step: int, readings: dict[str, float], collector: LayerCollector
) -> Iterator[CollapseWarning | None]:
    """Hand readings to an alarm; what it says is warned of, or raised, once they are recorded.

    Adds `collapse/alarm` to the readings: 1 where the alarm was raised, else 0.

    Raises:
        CollapseError: at the end of the context, if the alarm was told to raise.
    """
    if alarm is None:
        yield None
        return
    raised: CollapseError | None = None
    try:
        warning = alarm.update(step, readings, collector.layers[0])
    except CollapseError as error:
        raised, cause = error, error.__cause__
        warning = cause if isinstance(cause, CollapseWarning) else None
    readings["collapse/alarm"] = float(raised is not None or warning is not None)
    yield warning
    if raised is not None:
        raise raised
    if warning is not None:
        collector.warn(f"alarm {warning.kind} {warning.layer} {step}", warning)


def stops(alarm: CollapseAlarm | None) -> bool:
    """Whether the alarm ends the training."""
    return alarm is not None and alarm.stop_on_alarm
