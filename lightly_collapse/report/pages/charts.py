"""Charts for pages: Vega-Lite specifications that the page's script draws.

The reader can hover over values, switch lines on and off and save what is shown; the same plots as
PNG are in `plots`. Names of layers and models reach a specification as data alone, never inside an
expression or as the name of a field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from lightly_collapse.io.spectra import TrainingSpectra, spread_indices
from lightly_collapse.report.pages.figures import COLORS, line_colors
from lightly_collapse.report.pages.vega import (
    DASHED_RULE,
    TICK_LABEL,
    Rows,
    Series,
    chart_spec,
    drawable,
    horizontal_axis,
    interval_bands,
    line_marks,
    linear_axis,
    log_axis,
    readout,
    rounded,
    vertical_rules,
)

_Lines = Mapping[str, Sequence[float | None]]

LEAST = 1e-7
"""Where logarithmic axes end: below lies rounding error, and the axis would be mostly empty."""

_CELLS = 64  # a row of a heat map


@dataclass(frozen=True)
class Slider:
    """What the reader chooses by a slider.

    Attributes:
        name: what it goes through, such as `epoch`.
        steps: the label of every position.
        at: the position that each value belongs to.
    """

    name: str
    steps: list[str]
    at: Sequence[int]


@dataclass(frozen=True)
class Chart:
    """What a page needs to draw one chart and what surrounds it.

    Attributes:
        spec: the Vega-Lite specification, data included.
        series: its lines, which the reader can switch; empty for a heat map.
        columns: field and heading of every column of the CSV file.
        slider: where the values at one step are shown at a time.
        labels: what the whole numbers of a column stand for in the CSV file, by its field.
    """

    spec: dict[str, Any]
    series: list[Series]
    columns: list[tuple[str, str]]
    slider: Slider | None = None
    labels: dict[str, list[str]] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {
            "spec": self.spec,
            "series": [asdict(s) for s in self.series],
            "columns": self.columns,
            "labels": self.labels,
        }


def spectra(
    lines: _Lines, ylabel: str, description: str, tolerance: float | None = None
) -> Chart | None:
    """Spectra on a logarithmic axis against their index.

    Args:
        lines: values in descending order, by name.
        ylabel: what they are.
        description: of the chart, for those who cannot see it.
        tolerance: where to draw a dashed line.

    Returns:
        The chart; None where there is nothing to draw.

    Examples:
        >>> chart = spectra({"backbone": [1.0, 0.1, 0.0]}, "singular value / largest", "A line")
        >>> [series.name for series in chart.series]
        ['backbone']
    """
    longest = max(map(len, lines.values()), default=0)
    few = len(lines) <= len(COLORS)
    ends = [len(values) for values in lines.values()]
    shown = spread_indices(longest, 256 if few else 96, 64 if few else 32, ends if few else ())
    return line_chart(
        [i + 1 for i in shown],
        {name: [v[i] if i < len(v) else None for i in shown] for name, v in lines.items()},
        "index, largest first",
        ylabel,
        description,
        log=True,
        levels=[] if tolerance is None else [tolerance],
    )


def spectra_over_training(training: TrainingSpectra, description: str) -> Chart | None:
    """Spectra, each divided by its largest, at one step of training chosen by a slider.

    Args:
        training: as a monitor recorded it.
        description: of the chart, for those who cannot see it.

    Returns:
        The chart; None where there are fewer than two steps.
    """
    if len(training.steps) < 2:
        return None
    chosen = spread_indices(len(training.steps), limit=60, dense=0)
    names = list(dict.fromkeys(name for layers in training.spectra for name in layers))
    known = sorted({i for layers in training.spectra for line in layers.values() for i in line})
    index = [known[i] for i in spread_indices(len(known), limit=96, dense=32)]
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    for step in chosen:
        for name in names:
            line = training.spectra[step].get(name, {})
            largest = line.get(0) or math.nan
            columns[name] += [line[i] / largest if i in line else None for i in index]
    return line_chart(
        [i + 1 for _ in chosen for i in index],
        columns,
        "index, largest first",
        "singular value / largest",
        description,
        log=True,
        slider=Slider(
            training.key,
            [str(training.steps[i]) for i in chosen],
            [number for number in range(len(chosen)) for _ in index],
        ),
    )


def line_chart(
    x: Sequence[float] | Sequence[str],
    lines: _Lines,
    xlabel: str,
    ylabel: str,
    description: str,
    *,
    log: bool = False,
    mark: Literal["line", "step", "bars", "line and points", "points"] = "line",
    levels: Sequence[float] = (),
    marks: Mapping[str, float] | None = None,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    least: float = LEAST,
    slider: Slider | None = None,
    colors: Sequence[str] | None = None,
) -> Chart | None:
    """Values against a common axis, one line a name.

    Args:
        x: of every value; words, such as names of layers, stand side by side in their order.
        lines: values by name, as many as `x`; None where a line has none.
        xlabel: what `x` is.
        ylabel: what the values are.
        description: of the chart, for those who cannot see it.
        log: whether the axis of the values is logarithmic; those that are not positive are left
            out.
        mark: what is drawn of a line.
        levels: where to draw dashed horizontal lines.
        marks: where to draw a dashed vertical line of a line's colour, by its name.
        bands: lower and upper ends of an interval around a line, by its name.
        least: where a logarithmic axis ends at the latest.
        slider: to show the values of one step at a time.
        colors: of the lines; `line_colors` by default.

    Returns:
        The chart; None where there is nothing to draw.

    Examples:
        >>> chart = line_chart([1, 2], {"a": [0.5, 0.7]}, "epoch", "loss", "Loss by epoch")
        >>> chart.columns
        [('x', 'epoch'), ('s0', 'a')]
    """
    if not any(drawable(v, log) for values in lines.values() for v in values):
        return None
    series = [
        Series(f"s{i}", name, color)
        for i, (name, color) in enumerate(
            zip(lines, colors or line_colors(len(lines)), strict=True)
        )
    ]
    places: list[float | str] = [*x]
    rows: Rows = [
        {"x": place if isinstance(place, str) else rounded(place)}
        | ({"at": slider.at[i]} if slider else {})
        | {s.key: rounded(v) if drawable(v := lines[s.name][i], log) else None for s in series}
        for i, place in enumerate(places)
    ]
    bands = bands or {}
    for s in series:
        for end, values in zip(("low", "high"), bands.get(s.name, ()), strict=False):
            for row, value in zip(rows, values, strict=True):
                row[f"{s.key}{end}"] = rounded(max(value, least) if log else value)
    every = [v for values in lines.values() for v in values if v is not None and drawable(v, log)]
    points = mark.endswith("points")
    vertical = log_axis([*every, *levels], least) if log else linear_axis(every, mark != "points")
    layers = [
        *interval_bands(series, bands),
        *line_marks(series, mark),
        *(
            {
                "data": {"values": [{}]},
                "mark": DASHED_RULE,
                "encoding": {"x": None, "y": {"datum": level}},
            }
            for level in levels
        ),
        *vertical_rules(series, marks or {}),
        *([] if mark == "points" else [readout(series, isinstance(x[0], str))]),
    ]
    spec = chart_spec(description, rows) | {
        "height": 300,
        "params": [
            {"name": "hidden", "value": []},
            *([{"name": "at", "value": len(slider.steps) - 1}] if slider else []),
        ],
        "transform": [{"filter": "datum.at == at"}] if slider else [],
        "encoding": {
            "x": {"field": "x", "title": xlabel, **horizontal_axis(x, points)},
            "y": {"type": "quantitative", "title": ylabel, **vertical},
        },
        "layer": layers,
    }
    columns = [("x", xlabel), *((s.key, s.name) for s in series)]
    if not slider:
        return Chart(spec, series, columns)
    return Chart(spec, series, [("at", slider.name), *columns], slider, labels={"at": slider.steps})


def heat_map(lines: _Lines, label: str, description: str, least: float = 1e-6) -> Chart | None:
    """Spectra as one row of colour each, on a logarithmic scale, over their relative index.

    Args:
        lines: values between 0 and 1 in descending order, by name.
        label: what they are.
        description: of the chart, for those who cannot see it.
        least: where the scale ends; smaller values get its colour.

    Returns:
        The chart; None where there is nothing to draw.
    """
    rows: Rows = []
    for number, values in enumerate(lines.values()):
        cells = min(_CELLS, len(values))
        for cell in range(cells):
            first = cell * len(values) // cells
            value = rounded(values[first])
            rows.append({"row": number, "cell": cell, "index": first + 1, "value": value})
    if not rows:
        return None
    names = [
        {"row": number, "name": name, "length": len(values), "cells": min(_CELLS, len(values))}
        for number, (name, values) in enumerate(lines.items())
    ]
    percent = {"values": [0, 25, 50, 75, 100], "labelExpr": "datum.value + ' %'", "grid": False}
    spec = chart_spec(description, rows) | {
        "height": 14 * len(lines),
        "transform": [
            {
                "lookup": "row",
                "from": {
                    "data": {"values": names},
                    "key": "row",
                    "fields": ["name", "length", "cells"],
                },
            },
            {"calculate": "100 * datum.cell / datum.cells", "as": "from"},
            # A little into the next cell, which is drawn over it: no gaps between them.
            {"calculate": "min(100, 100 * (datum.cell + 1.3) / datum.cells)", "as": "to"},
            {"calculate": f"max(datum.value, {least})", "as": "shown"},
            {"calculate": "datum.index + ' of ' + datum.length", "as": "place"},
        ],
        "mark": {"type": "rect", "cursor": "pointer"},
        "encoding": {
            "x": {
                "field": "from",
                "type": "quantitative",
                "title": "eigenvalues, largest first",
                "scale": {"domain": [0, 100], "nice": False},
                "axis": percent,
            },
            "x2": {"field": "to"},
            "y": {
                "field": "name",
                "type": "nominal",
                "sort": None,
                "title": None,
                "axis": {"labelLimit": 170, "ticks": False, "domain": False},
            },
            "color": {
                "field": "shown",
                "type": "quantitative",
                "title": label,
                "scale": {"type": "log", "domain": [least, 1], "scheme": "viridis"},
                "legend": {
                    "orient": "bottom",
                    "direction": "horizontal",
                    "gradientLength": 130,
                    "values": [least, math.sqrt(least), 1],
                    "labelExpr": TICK_LABEL,
                },
            },
            "tooltip": [
                {"field": "name", "title": "name"},
                {"field": "place", "title": "index"},
                {"field": "value", "title": "value", "format": ".3g", "type": "quantitative"},
            ],
        },
    }
    columns = [("row", "name"), ("index", "index"), ("value", label)]
    return Chart(spec, [], columns, labels={"row": list(lines)})


def histogram(
    values: Mapping[str, Sequence[float]], xlabel: str, marks: Mapping[str, float], description: str
) -> Chart | None:
    """Histograms on common bins, with a dashed vertical line at a mark.

    Args:
        values: by name.
        xlabel: what they are.
        marks: where a line is drawn, by the name of the values it belongs to.
        description: of the chart, for those who cannot see it.

    Returns:
        The chart; None where there is nothing to draw.
    """
    arrays = {name: np.asarray(v, dtype=float) for name, v in values.items() if len(v)}
    if not arrays:
        return None
    together = np.concatenate(list(arrays.values()))
    one = len(arrays) == 1
    # A handful of isolated samples must not squeeze the others into one bin.
    edges = np.linspace(together.min(), np.quantile(together, 0.995), 50 if one else 35)
    shares = {
        f"{name} ({marks[name]:.2f})" if name in marks else name: [
            *(100 * np.histogram(np.minimum(a, edges[-1]), edges)[0] / len(a)).tolist(),
            0.0,
        ]
        for name, a in arrays.items()
    }
    return line_chart(
        edges.tolist(), shares, xlabel, "% of samples", description,
        mark="bars" if one else "step", colors=COLORS[1:2] if one else None,
        marks={shown: marks[name] for shown, name in zip(shares, arrays, strict=True)
               if name in marks},
    )  # fmt: skip
