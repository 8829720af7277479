"""Figures for pages and files: one style, legible on paper, on light and on dark screens."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

# A colour that no plot uses, replaced in SVG by the page's own text colour.
_INK = "#010203"

COLORS = ("#7f7f7f", "#2f7ed8", "#1aa179", "#d9822b", "#c2479d", "#d64545", "#8d6ae0", "#8a8f2a")
"""Line colours with contrast against white and near-black alike; the first is for a baseline."""

_STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "font.size": 10,
    "grid.alpha": 0.2,
    "grid.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@contextmanager
def figure(width: float = 7.2, height: float = 4.2) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one plot in the package's style, drawn without a display.

    Args:
        width: in inches.
        height: in inches.

    Yields:
        The figure and its axes.

    Examples:
        >>> with figure() as (fig, axes):
        ...     lines = axes.plot([1, 2], [3, 4])
        ...     png = to_png(fig)
    """
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        yield fig, fig.add_subplot()


@contextmanager
def panels(
    rows: int, columns: int, width: float = 7.2, height: float = 4.2
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of several plots in the package's style.

    Args:
        rows: of plots.
        columns: of plots.
        width: in inches.
        height: in inches.

    Yields:
        The figure and its axes, row by row.

    Examples:
        >>> with panels(1, 2) as (fig, axes):
        ...     len(axes)
        2
    """
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        yield fig, list(fig.subplots(rows, columns, squeeze=False).flat)


def line_colors(lines: int) -> list[str]:
    """Colours of lines: `COLORS`, or along one scale where there are more of them.

    Args:
        lines: how many.

    Returns:
        As `#rrggbb`.

    Examples:
        >>> line_colors(2)
        ['#7f7f7f', '#2f7ed8']
    """
    if lines <= len(COLORS):
        return list(COLORS[:lines])
    scale = mpl.colormaps["viridis"](np.linspace(0.05, 0.9, lines))
    return [mpl.colors.to_hex(color) for color in scale]


def use_scale_for_many(axes: Axes, lines: int) -> None:
    """Colour lines along one scale where there are more of them than `COLORS`.

    Args:
        axes: where they will be drawn.
        lines: how many.
    """
    if lines > len(COLORS):
        axes.set_prop_cycle(color=line_colors(lines))


@contextmanager
def _any_text(fig: Figure) -> Iterator[None]:
    """Draw names as they are: a dollar is no formula, and a letter that the font lacks is a box."""
    numbers = {
        id(label)
        for axes in fig.axes
        for axis in (axes.xaxis, axes.yaxis)
        if not isinstance(axis.get_major_formatter(), (FixedFormatter, StrCategoryFormatter))
        for label in axis.get_ticklabels(which="both")
    }
    for text in fig.findobj(Text):
        if isinstance(text, Text) and id(text) not in numbers:
            text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def to_png(fig: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white.

    Args:
        fig: the figure.
        dpi: pixels an inch.

    Returns:
        The bytes of the file.
    """
    buffer = io.BytesIO()
    with _any_text(fig):
        fig.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def to_svg(fig: Figure, description: str) -> Markup:
    """The figure as an SVG element for a page, its text and axes in the page's text colour.

    Args:
        fig: the figure.
        description: what it shows, for those who cannot see it.

    Returns:
        The element, safe to put into a template.
    """
    buffer = io.StringIO()
    # The salt makes the same drawing the same text, and two drawings' identifiers differ.
    with mpl.rc_context({"svg.hashsalt": description}), _any_text(fig):
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    label = Markup('role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", f"<svg {label}", 1))
