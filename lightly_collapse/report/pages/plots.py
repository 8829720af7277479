"""The plots of collapse: spectra on a logarithmic axis, heat maps and histograms."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from lightly_collapse.report.pages.figures import COLORS, figure, use_scale_for_many

_LEAST = 1e-7


def log_lines(
    lines: Mapping[str, Sequence[float]],
    ylabel: str,
    tolerance: float | None = None,
    title: str | None = None,
) -> Figure:
    """Spectra on a logarithmic axis against their index, one line each.

    Args:
        lines: values in descending order, by label; those that are not positive are left out.
        ylabel: what they are.
        tolerance: where to draw a dashed line.
        title: of the plot.

    Returns:
        The figure.

    Examples:
        >>> fig = log_lines({"backbone": [1.0, 0.1, 0.0]}, "singular value / largest", 1e-3)
    """
    with figure() as (fig, axes):
        use_scale_for_many(axes, len(lines))
        for label, values in lines.items():
            positive = [v if v > 0 else math.nan for v in values]
            axes.plot(range(1, len(values) + 1), positive, label=label)
        if tolerance is not None:
            axes.axhline(tolerance, linestyle="--", linewidth=1, color="#7f7f7f")
        axes.set_yscale("log")
        # Below this lies rounding error, and the axis would be mostly empty.
        if axes.get_ylim()[0] < _LEAST:
            largest = max((max(v, default=_LEAST) for v in lines.values()), default=_LEAST)
            axes.set_ylim(_LEAST, 1.6 * max(largest, 2 * _LEAST))
        axes.set_xlabel("index, largest first")
        axes.set_ylabel(ylabel)
        axes.margins(x=0.01)
        if title is not None:
            axes.set_title(title)
        if len(lines) > len(COLORS):
            axes.legend(fontsize="x-small", ncols=2)
        elif lines:
            axes.legend()
    return fig


def heat_map(lines: Mapping[str, Sequence[float]], label: str, floor: float = 1e-6) -> Figure:
    """Spectra as one row of colour each, on a logarithmic scale, over their relative index.

    Args:
        lines: values between 0 and 1 in descending order, by label.
        label: what they are.
        floor: where the scale ends; smaller values get its colour.

    Returns:
        The figure.

    Examples:
        >>> fig = heat_map({"layer1": [1.0, 0.1], "layer2": [1.0, 0.5]}, "eigenvalue / largest")
    """
    columns = 256
    image = np.empty((len(lines), columns))
    for row, values in enumerate(lines.values()):
        index = np.arange(columns) * len(values) // columns
        image[row] = np.log10(np.maximum(np.asarray(values, dtype=float), floor))[index]
    with figure(height=1.3 + 0.2 * max(4, len(lines))) as (fig, axes):
        low = round(math.log10(floor))
        drawn = axes.imshow(
            image, aspect="auto", interpolation="nearest", vmin=low, vmax=0, extent=(0, 1, 1, 0)
        )
        axes.set_yticks([(i + 0.5) / len(lines) for i in range(len(lines))], list(lines))
        axes.tick_params(axis="y", labelsize="small", length=0)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["first", "25 %", "50 %", "75 %", "last"])
        axes.set_xlabel("eigenvalues, largest first")
        axes.grid(visible=False)
        bar = fig.colorbar(drawn, ax=axes, pad=0.02)
        bar.set_ticks(range(low, 1), labels=[f"$10^{{{p}}}$" for p in range(low, 0)] + ["1"])
        bar.set_label(label)
        bar.outline.set_visible(False)
    return fig


def histogram(
    values: Mapping[str, Sequence[float]], xlabel: str, marks: Mapping[str, float]
) -> Figure:
    """Histograms on common bins, with a dashed vertical line at a mark, named in the legend.

    Args:
        values: by label.
        xlabel: what they are.
        marks: where a line is drawn, by the label of the values it belongs to.

    Returns:
        The figure.

    Examples:
        >>> fig = histogram({"a": [1.0, 2.0, 2.5]}, "local intrinsic dimensionality", {"a": 1.7})
    """
    arrays = {label: np.asarray(v, dtype=float) for label, v in values.items()}
    together = np.concatenate(list(arrays.values()))
    one = len(arrays) == 1
    # A handful of isolated samples must not squeeze the others into one bin.
    bins = np.linspace(together.min(), np.quantile(together, 0.995), 50 if one else 35)
    colors = COLORS[1:] if one else COLORS  # those of the spectra beside it
    with figure(height=3.4) as (fig, axes):
        for color, (label, array) in zip(cycle(colors), arrays.items(), strict=False):
            mark = marks.get(label)
            axes.hist(
                np.minimum(array, bins[-1]),
                bins=bins.tolist(),
                weights=np.full(len(array), 100 / len(array)),
                histtype="stepfilled" if one else "step",
                linewidth=1.6,
                alpha=0.7 if one else 1,
                color=color,
                # Beside the name: means that lie close would cover each other's numbers.
                label=label if mark is None else f"{label} ({mark:.2f})",
            )
            if mark is not None:
                axes.axvline(mark, color=color, linestyle="--", linewidth=1.2)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("% of samples")
        axes.legend(fontsize="small")
    return fig
