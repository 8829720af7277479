"""When the readings of a run say that it is collapsing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Kind = Literal["collapse", "falling_rank", "lost_layer", "not_finite"]

_PREFIX = "collapse/"


class CollapseWarning(UserWarning):
    """What an alarm has to say.

    Attributes:
        kind: `collapse`, `falling_rank`, `lost_layer` or `not_finite`.
        layer: name of the layer.
        step: when it was noticed.
        value: what was measured.
        threshold: what it was compared with.
    """

    def __init__(
        self, message: str, kind: Kind, layer: str, step: int, value: float, threshold: float
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.layer = layer
        self.step = step
        self.value = value
        self.threshold = threshold


class CollapseError(RuntimeError):
    """An alarm that was told to end the run did; its cause is the `CollapseWarning`."""


@dataclass
class _History:
    ranks: list[float] = field(default_factory=list)
    highest: float = 0.0
    below: int = 0
    missing: int = 0
    reported: set[str] = field(default_factory=set)


class CollapseAlarm:
    """Watches the readings of every layer for complete collapse and for a rank that falls.

    The layers are told apart by the names of the readings, `collapse/<layer>/<metric>`. Raised are

    - `collapse`: the effective rank is at most `complete_rank`, or all rows are equal;
    - `falling_rank`: the effective rank was below `rank_fraction` of the highest median of
      `smoothing` readings in a row so far, at `patience` readings in a row, after `warmup`
      readings. A rank that falls in the first steps, as it does from random weights, moves no
      such median of later readings;
    - `lost_layer`: a layer that was measured is missing from `patience` readings in a row;
    - `not_finite`: more than `dropped_fraction` of the rows hold NaN or inf.

    A warning is given once, and again only after the readings were normal in between. The
    thresholds are starting points that mark gross failures.

    Args:
        complete_rank: an effective rank of centred features; 1 is that of a line.
        rank_fraction: of the layer's own highest rank.
        warmup: number of readings before which `falling_rank` says nothing.
        smoothing: number of readings to take the median of.
        patience: number of readings in a row.
        dropped_fraction: share of rows that may hold NaN or inf.
        raise_on_alarm: raise `CollapseError` instead of returning the warning.

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> alarm = CollapseAlarm()
        >>> alarm.update(100, {"collapse/backbone/effective_rank": 143.0})
        >>> alarm.update(200, {"collapse/backbone/effective_rank": 1.0}).kind
        'collapse'
    """

    def __init__(
        self,
        complete_rank: float = 1.5,
        rank_fraction: float = 0.5,
        warmup: int = 3,
        smoothing: int = 3,
        patience: int = 2,
        dropped_fraction: float = 0.0,
        raise_on_alarm: bool = False,
    ) -> None:
        if not complete_rank >= 1:
            raise ValueError(f"complete_rank must be at least 1, got {complete_rank}")
        for name, share in (
            ("rank_fraction", rank_fraction),
            ("dropped_fraction", dropped_fraction),
        ):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        for name, count in (("smoothing", smoothing), ("patience", patience)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if warmup < 0:
            raise ValueError(f"warmup must not be negative, got {warmup}")
        self.complete_rank = complete_rank
        self.rank_fraction = rank_fraction
        self.warmup = warmup
        self.smoothing = smoothing
        self.patience = patience
        self.dropped_fraction = dropped_fraction
        self.raise_on_alarm = raise_on_alarm
        self._layers: dict[str, _History] = {}

    def update(self, step: int, readings: Mapping[str, float]) -> CollapseWarning | None:
        """Take in the readings of a step.

        Args:
            step: number of optimizer steps.
            readings: by name, `collapse/<layer>/<metric>`; other names are passed over.

        Returns:
            The first warning, of the gravest kind, or None.

        Raises:
            CollapseError: in place of the warning, with `raise_on_alarm`.
        """
        layers: dict[str, dict[str, float]] = {}
        for name, value in readings.items():
            layer, _, metric = name.removeprefix(_PREFIX).rpartition("/")
            if name.startswith(_PREFIX) and metric:
                layers.setdefault(layer, {})[metric] = value
        found = []
        for layer in dict.fromkeys([*self._layers, *layers]):
            history = self._layers.setdefault(layer, _History())
            given = layers.get(layer)
            warnings = self._missing(step, layer, history) if given is None else []
            if given is not None:
                history.missing = 0
                warnings = self._judge(step, layer, history, given)
            found += [w for w in warnings if w.kind not in history.reported]
            history.reported = {w.kind for w in warnings}
        if not found:
            return None
        if self.raise_on_alarm:
            raise CollapseError(str(found[0])) from found[0]
        return found[0]

    def _missing(self, step: int, layer: str, history: _History) -> list[CollapseWarning]:
        history.missing += 1
        if history.missing < self.patience:
            return []
        message = (
            f"{layer} was measured before but not at the last {history.missing} readings "
            f"(step {step}): is it still called in training?"
        )
        missing, most = float(history.missing), float(self.patience)
        return [CollapseWarning(message, "lost_layer", layer, step, missing, most)]

    def _judge(
        self, step: int, layer: str, history: _History, given: Mapping[str, float]
    ) -> list[CollapseWarning]:
        warnings = []
        rows, dropped = given.get("rows", 0.0), given.get("dropped", 0.0)
        share = dropped / max(rows + dropped, 1.0)
        if share > self.dropped_fraction:
            message = f"{layer}: {share:.1%} of the rows hold NaN or inf (step {step})"
            warnings.append(
                CollapseWarning(message, "not_finite", layer, step, share, self.dropped_fraction)
            )
        rank = given.get("effective_rank")
        if rank is None or (math.isnan(rank) and rows == 0):
            return warnings
        if math.isnan(rank) or rank <= self.complete_rank:
            value = "all rows are equal" if math.isnan(rank) else f"effective rank {rank:.2f}"
            message = f"{layer} has collapsed: {value} (step {step})"
            warnings.append(
                CollapseWarning(message, "collapse", layer, step, rank, self.complete_rank)
            )
            return warnings
        warnings += self._against_history(step, layer, history, rank)
        return warnings

    def _against_history(
        self, step: int, layer: str, history: _History, rank: float
    ) -> list[CollapseWarning]:
        threshold = self.rank_fraction * history.highest
        history.below = history.below + 1 if rank < threshold else 0
        history.ranks.append(rank)
        if len(history.ranks) >= max(self.warmup, self.smoothing):
            recent = median(history.ranks[-self.smoothing :])
            history.highest = max(history.highest, recent)
        del history.ranks[: -max(self.warmup, self.smoothing)]
        if history.below < self.patience:
            return []
        message = (
            f"the effective rank of {layer} fell to {rank:.1f}, below {self.rank_fraction:g} of "
            f"{history.highest:.1f}, its highest so far (step {step})"
        )
        return [CollapseWarning(message, "falling_rank", layer, step, rank, threshold)]
