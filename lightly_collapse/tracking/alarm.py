"""When the readings of a run say that it is collapsing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Kind = Literal["collapse", "falling_rank", "lost_dimensions", "lost_layer", "not_finite"]

_PREFIX = "collapse/"
_NARROW = 4
_HALF = 0.5
_MANY = 4
_CAUSES = {
    "narrow": "it has hardly more dimensions: is the projector too narrow?",
    "collapse": "likely causes: units that are dead, weight decay or learning rate too high",
    "spread": "likely causes: an objective that a constant output minimises (no predictor, "
    "stop-gradient, variance term or centring), or a learning rate too high",
    "falling_rank": "likely causes: weight decay or learning rate too high, few distinct images, "
    "views that are too different",
    "lost_dimensions": "likely causes: units that are dead, weight decay or learning rate too high",
    "not_finite": "likely causes: a learning rate too high, or an overflow in half precision",
}


class CollapseWarning(UserWarning):
    """What an alarm has to say.

    Attributes:
        kind: `collapse`, `falling_rank`, `lost_dimensions`, `lost_layer` or `not_finite`.
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
class _Highest:
    """The medians of a few values in a row, against the highest of them so far."""

    recent: list[float] = field(default_factory=list)
    highest: float = 0.0

    @property
    def now(self) -> float:
        return median(self.recent)

    def share(self, value: float, smoothing: int) -> float:
        self.recent = [*self.recent, value][-smoothing:]
        self.highest = max(self.highest, self.now)
        return self.now / self.highest if self.highest > 0 else 1.0


@dataclass
class _History:
    ranks: _Highest = field(default_factory=_Highest)
    lost: list[float] = field(default_factory=list)
    spreads: _Highest = field(default_factory=_Highest)
    missing: int = 0
    reported: set[str] = field(default_factory=set)


class CollapseAlarm:
    """Watches the readings of layers for collapse, complete or of dimensions.

    Raised are, of every layer that lies in no other measured layer,

    - `collapse`: the effective rank is at most `complete_rank`, all rows are equal, or all rows
      point in one direction: their uniformity is within `least_spread` of 0, that of one point, or
      its share of the layer's own highest is below `spread_fraction` times that of the rank;
    - `falling_rank`: the effective rank, the median of `smoothing` readings, is at most
      `rank_fraction` of the layer's own highest (of an embedding `embedding_fraction`), or at most
      `few_fraction` of it and no more than `few_dimensions`;
    - `lost_dimensions`, of the representation alone, in the median of `smoothing` readings: the
      share of collapsed dimensions, of those that the rows could fill, is at least `lost_fraction`,
      or the effective rank is at most `least_rank` though they could fill four times as many: a
      training that was broken before the first reading has no better past to be compared with;

    and of every layer

    - `lost_layer`: it was measured before and is missing from `patience` readings in a row;
    - `not_finite`: more than `dropped_fraction` of its rows hold NaN or inf.

    One layer is taken for the representation, others for embeddings. By default it is the first
    that is measured; trackers name the first that they were given, be it measured or not. Parts of
    it, such as class and patch tokens, are representations too.
    Rows of a representation may share most of their direction in healthy trainings, as after
    the last normalization of a Vision Transformer, so its directions count only where its rank is
    down to half of its highest. An embedding's rank falls in healthy trainings as well, to a third
    of that of random weights and less.

    Layers within another, such as the stages of a backbone, are measured but not judged by their
    rank: early ones have few dimensions in healthy trainings too. A warning is given once, and
    again only after the readings were normal in between.

    The thresholds were chosen on 108 collapsed and 85 healthy trainings of nineteen methods, with
    representation and embedding as layers and 24 readings a run: rank fell to no less than 0.41 of
    its highest in a healthy representation, and 0.23 in an embedding. A training is called healthy
    there if it learned something as well; one that stays at the accuracy of random weights may lose
    as many dimensions as a collapsed one. See the guide for how often they are right on others.

    Args:
        complete_rank: an effective rank of centred features; 1 is that of a line.
        least_spread: a uniformity of at least minus this is that of one point.
        rank_fraction: of the representation's own highest rank.
        few_fraction: of the layer's own highest rank, where few dimensions are left.
        few_dimensions: so many are few.
        embedding_fraction: of an embedding's own highest rank.
        lost_fraction: of the dimensions; needs `collapsed_dimensions`, `dimensions` and `rows`.
        spread_fraction: of the share of its highest that the rank still has; 0 turns it off.
        smoothing: number of readings to take the median of.
        patience: number of readings in a row that may lack a layer.
        least_rank: an effective rank of a representation.
        dropped_fraction: share of rows that may hold NaN or inf.
        raise_on_alarm: raise `CollapseError` instead of returning the warning.
        stop_on_alarm: end the training after the step; for the callbacks, and for a loop that
            looks at `CollapseTracker.should_stop`.

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
        complete_rank: float = 3.0,
        least_spread: float = 0.05,
        rank_fraction: float = 0.35,
        spread_fraction: float = 0.25,
        smoothing: int = 3,
        patience: int = 2,
        dropped_fraction: float = 0.0,
        few_fraction: float = 0.25,
        few_dimensions: float = 12.0,
        lost_fraction: float = 0.72,
        embedding_fraction: float = 0.15,
        least_rank: float = 5.0,
        raise_on_alarm: bool = False,
        stop_on_alarm: bool = False,
    ) -> None:
        if not complete_rank >= 1:
            raise ValueError(f"complete_rank must be at least 1, got {complete_rank}")
        for name, least in (
            ("least_spread", least_spread),
            ("few_dimensions", few_dimensions),
            ("least_rank", least_rank),
        ):
            if not least >= 0:
                raise ValueError(f"{name} must not be negative, got {least}")
        for name, share in (
            ("rank_fraction", rank_fraction),
            ("embedding_fraction", embedding_fraction),
            ("few_fraction", few_fraction),
            ("spread_fraction", spread_fraction),
            ("dropped_fraction", dropped_fraction),
        ):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        if not 0 < lost_fraction <= 1:
            raise ValueError(f"lost_fraction must be above 0 and at most 1, got {lost_fraction}")
        for name, count in (("smoothing", smoothing), ("patience", patience)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.complete_rank = complete_rank
        self.least_spread = least_spread
        self.rank_fraction = rank_fraction
        self.embedding_fraction = embedding_fraction
        self.few_fraction = few_fraction
        self.few_dimensions = few_dimensions
        self.lost_fraction = lost_fraction
        self.least_rank = least_rank
        self.spread_fraction = spread_fraction
        self.smoothing = smoothing
        self.patience = patience
        self.dropped_fraction = dropped_fraction
        self.raise_on_alarm = raise_on_alarm
        self.stop_on_alarm = stop_on_alarm
        self._layers: dict[str, _History] = {}
        self._representation: str | None = None

    def update(
        self, step: int, readings: Mapping[str, float], representation: str | None = None
    ) -> CollapseWarning | None:
        """Take in the readings of a step.

        Args:
            step: number of optimizer steps.
            readings: by name, `collapse/<layer>/<metric>`; other names are passed over.
            representation: name of the layer that is the representation.

        Returns:
            The first warning, of the gravest kind, or None.

        Raises:
            CollapseError: in place of the warning, with `raise_on_alarm`.
        """
        layers: dict[str, dict[str, float]] = {}
        for name, value in readings.items():
            layer, _, metric = name.removeprefix(_PREFIX).rpartition("/")
            if name.startswith(_PREFIX) and layer and metric:
                layers.setdefault(layer, {})[metric] = value
        outer = [x for x in layers if not any(x.startswith(f"{other}.") for other in layers)]
        if representation is not None:
            self._representation = representation
        elif self._representation is None and outer:
            self._representation = outer[0]
        found = []
        for layer in dict.fromkeys([*self._layers, *layers]):
            history = self._layers.setdefault(layer, _History())
            given = layers.get(layer)
            if given is None:
                warnings = self._missing(step, layer, history)
            else:
                history.missing = 0
                warnings = self._not_finite(step, layer, given)
                if layer in outer:
                    main = f"{layer}.".startswith(f"{self._representation}.")
                    warnings += self._judge(step, layer, history, given, main)
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

    def _not_finite(
        self, step: int, layer: str, given: Mapping[str, float]
    ) -> list[CollapseWarning]:
        rows, dropped = given.get("rows", 0.0), given.get("dropped", 0.0)
        share = dropped / max(rows + dropped, 1.0)
        if share <= self.dropped_fraction:
            return []
        message = (
            f"{layer}: {share:.1%} of the rows hold NaN or inf, more than "
            f"{self.dropped_fraction:.1%} (step {step}); {_CAUSES['not_finite']}"
        )
        return [CollapseWarning(message, "not_finite", layer, step, share, self.dropped_fraction)]

    def _judge(
        self,
        step: int,
        layer: str,
        history: _History,
        given: Mapping[str, float],
        representation: bool,
    ) -> list[CollapseWarning]:
        rank = given.get("effective_rank")
        if rank is None or (math.isnan(rank) and given.get("rows", 0.0) == 0):
            return []
        if math.isnan(rank) or rank <= self.complete_rank:
            value = "all rows are equal" if math.isnan(rank) else f"effective rank {rank:.2f}"
            width = given.get("dimensions", math.inf)
            cause = _CAUSES["narrow" if width <= _NARROW else "collapse"]
            message = (
                f"{layer} has collapsed: {value}, at most {self.complete_rank:g} (step {step}); "
                f"{cause}"
            )
            return [CollapseWarning(message, "collapse", layer, step, rank, self.complete_rank)]
        share = history.ranks.share(rank, self.smoothing)
        spread = -given.get("uniformity", math.nan)
        warning = None
        if not math.isnan(spread):
            spread_share = history.spreads.share(spread, self.smoothing)
            if not representation or share <= _HALF:
                now = history.spreads.now
                warning = self._against_spread(step, layer, share, now, spread_share)
        threshold = self.rank_fraction if representation else self.embedding_fraction
        if history.ranks.now <= self.few_dimensions:
            threshold = max(threshold, self.few_fraction)
        if warning is None and share <= threshold:
            message = (
                f"{layer} loses dimensions: its effective rank is {rank:.1f}, {share:.0%} of its "
                f"highest, at most {threshold:.0%} (step {step}); {_CAUSES['falling_rank']}"
            )
            warning = CollapseWarning(message, "falling_rank", layer, step, share, threshold)
        if warning is None and representation:
            warning = self._lost_dimensions(step, layer, history, given)
        return [] if warning is None else [warning]

    def _lost_dimensions(
        self, step: int, layer: str, history: _History, given: Mapping[str, float]
    ) -> CollapseWarning | None:
        names = ("collapsed_dimensions", "dimensions", "rows")
        collapsed, dimensions, rows = (given.get(name, math.nan) for name in names)
        fillable = min(dimensions, rows - 1)
        if not (math.isfinite(collapsed) and fillable >= 1):
            return None
        lost = (collapsed - (dimensions - fillable)) / fillable
        history.lost = [*history.lost, lost][-self.smoothing :]
        if len(history.lost) < self.smoothing:
            return None
        share, rank = median(history.lost), history.ranks.now
        if share >= self.lost_fraction:
            value, threshold = share, self.lost_fraction
            what = (
                f"{share:.0%} of those that {rows:.0f} rows could fill have collapsed, at least "
                f"{threshold:.0%}"
            )
        elif rank <= self.least_rank and fillable >= _MANY * self.least_rank:
            value, threshold = rank, self.least_rank
            what = (
                f"its effective rank is {rank:.1f} of {fillable:.0f} that {rows:.0f} rows could "
                f"fill, at most {threshold:g}"
            )
        else:
            return None
        message = (
            f"{layer} leaves most dimensions unused: {what} (step {step}); "
            f"{_CAUSES['lost_dimensions']}"
        )
        return CollapseWarning(message, "lost_dimensions", layer, step, value, threshold)

    def _against_spread(
        self, step: int, layer: str, rank_share: float, spread: float, share: float
    ) -> CollapseWarning | None:
        threshold = self.spread_fraction * rank_share
        if spread <= self.least_spread:
            message = (
                f"all rows of {layer} point in one direction: uniformity {-spread:.3f}, within "
                f"{self.least_spread:g} of one point's (step {step}); {_CAUSES['spread']}"
            )
            return CollapseWarning(message, "collapse", layer, step, -spread, -self.least_spread)
        if share <= threshold:
            message = (
                f"the rows of {layer} draw together in one direction: uniformity {-spread:.3f}, "
                f"{share:.0%} of its strongest, at most {threshold:.0%} (step {step}); "
                f"{_CAUSES['spread']}"
            )
            return CollapseWarning(message, "collapse", layer, step, share, threshold)
        return None
