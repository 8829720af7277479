"""Parts of Vega-Lite specifications: marks, axes, tooltips; `charts` puts them together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = list[dict[str, Any]]
"""The data of a chart: one mapping a point."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        key: its field in the data.
        name: what it is called.
        color: as `#rrggbb`.
    """

    key: str
    name: str
    color: str


TICK_LABEL = "format(datum.value, datum.value < 0.001 ? '.0e' : '~g')"
DASHED_RULE = {"type": "rule", "strokeDash": [5, 4], "color": "#7f7f7f", "aria": False}
_OF_A_POINT = [
    {"field": "line", "title": "line"},
    {"field": "x", "title": "x", "type": "quantitative", "format": ".4~g"},
    {"field": "y", "title": "y", "type": "quantitative", "format": ".4~g"},
]
_MARKS: dict[str, dict[str, Any]] = {
    "line": {"type": "line"},
    "step": {"type": "line", "interpolate": "step-after"},
    "bars": {"type": "area", "interpolate": "step-after", "opacity": 0.7},
    "line and points": {"type": "line", "point": {"size": 22}},
    "points": {"type": "point", "filled": True, "size": 50, "opacity": 0.9},
}


def chart_spec(description: str, rows: Rows) -> dict[str, Any]:
    """What every specification has: its data, and the width of the page."""
    return {
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": rows},
    }


def line_marks(series: Sequence[Series], mark: str) -> Rows:
    """The lines: the fields folded into one, so that one filter switches each of them."""
    return [
        {
            "transform": [
                {"fold": [s.key for s in series], "as": ["line", "y"]},
                {"filter": "isValid(datum.y) && indexof(hidden, datum.line) < 0"},
            ],
            "mark": {"clip": True, "strokeWidth": 1.7, "tooltip": None, **_MARKS[mark]},
            "encoding": {
                "y": {"field": "y"},
                "color": _line_color(series),
                **({"tooltip": _OF_A_POINT} if mark == "points" else {}),
            },
        }
    ]


def interval_bands(series: Sequence[Series], bands: Mapping[str, object]) -> Rows:
    """Areas between the lower and upper end of the intervals, for the lines that have one."""
    return [
        {
            "transform": [{"filter": f"indexof(hidden, '{s.key}') < 0"}],
            "mark": {"type": "area", "clip": True, "opacity": 0.22, "color": s.color,
                     "tooltip": None},
            "encoding": {"y": {"field": f"{s.key}low"}, "y2": {"field": f"{s.key}high"}},
        }
        for s in series
        if s.name in bands
    ]  # fmt: skip


def vertical_rules(series: Sequence[Series], marks: Mapping[str, float]) -> Rows:
    """Dashed vertical lines at `marks`, each in the colour of the line of its name."""
    places = [{"line": s.key, "place": marks[s.name]} for s in series if s.name in marks]
    if not places:
        return []
    return [
        {
            "data": {"values": places},
            "transform": [{"filter": "indexof(hidden, datum.line) < 0"}],
            "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.4, "tooltip": None},
            "encoding": {"x": {"field": "place", "type": "quantitative"}, "y": None,
                         "color": _line_color(series)},
        }
    ]  # fmt: skip


def readout(series: Sequence[Series], words: bool) -> dict[str, Any]:
    """A vertical line that follows the pointer, with the values of every line beside it."""
    number = {"format": ".4~g", "type": "quantitative"}
    return {
        "params": [
            {
                "name": "near",
                "select": {"type": "point", "fields": ["x"], "nearest": True,
                           "on": "pointermove", "clear": "pointerout"},
            }
        ],
        "mark": {"type": "rule", "aria": False},
        "encoding": {
            "y": None,
            "opacity": {"condition": {"param": "near", "empty": False, "value": 0.45}, "value": 0},
            "tooltip": [
                {"field": "x", "title": "x", **({"type": "nominal"} if words else number)},
                *({"field": s.key, "title": s.key, **number} for s in series),
            ],
        },
    }  # fmt: skip


def _line_color(series: Sequence[Series]) -> dict[str, Any]:
    return {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": [s.key for s in series], "range": [s.color for s in series]},
        "legend": None,
    }


def horizontal_axis(x: Sequence[float] | Sequence[str], points: bool) -> dict[str, Any]:
    """Type, scale and labels of the common axis: of numbers, or of words side by side."""
    numbers = [place for place in x if not isinstance(place, str)]
    if not numbers:
        axis = {"labelAngle": -35, "labelLimit": 130, "labelOverlap": "greedy"}
        return {"type": "ordinal", "sort": None, "axis": axis, "scale": {"type": "point"}}
    # Fixed, as the other axis is: nothing moves where lines are switched off.
    domain = [min(numbers), max(numbers)]
    scale = {"domain": domain, "nice": False, "padding": 8 * points}
    whole = all(float(place).is_integer() for place in numbers)
    return {"type": "quantitative", "scale": scale, "axis": {"tickMinStep": 1} if whole else {}}


def log_axis(values: Sequence[float], least: float) -> dict[str, Any]:
    """Scale and ticks at powers of ten, and between them where there are few."""
    high = max(*values, 2 * least)
    low = min(max(min(values), least), high / 2)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 3 else (1, 2, 5)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return {
        "axis": {
            "values": [tick for tick in ticks if low / 1.2 <= tick <= 1.5 * high],
            "labelExpr": TICK_LABEL,
        },
        "scale": {"type": "log", "domain": [low / 1.2, 1.5 * high], "nice": False},
    }


def linear_axis(values: Sequence[float], from_zero: bool) -> dict[str, Any]:
    """A fixed scale around all values, or from zero to the largest."""
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    room = 0.05 * (high - low) or 1.0
    return {"scale": {"domain": [low if from_zero else low - room, high + room], "nice": False}}


def drawable(value: float | None, log: bool) -> bool:
    """Whether a value has a place on the axis: finite, and positive on a logarithmic one."""
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def rounded(value: float | None) -> float | None:
    """The value to five digits, more than the screen shows; None for what JSON does not have."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
