"""The plot of collapse as a figure: spectra on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lightly_collapse.io.files import printable
from lightly_collapse.report.pages.charts import LEAST
from lightly_collapse.report.pages.figures import COLORS, figure, use_scale_for_many


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
            axes.plot(range(1, len(values) + 1), positive, label=printable(label))
        if tolerance is not None:
            axes.axhline(tolerance, linestyle="--", linewidth=1, color="#7f7f7f")
        axes.set_yscale("log")
        # Below this lies rounding error, and the axis would be mostly empty.
        if axes.get_ylim()[0] < LEAST:
            largest = max((max(v, default=LEAST) for v in lines.values()), default=LEAST)
            axes.set_ylim(LEAST, 1.6 * max(largest, 2 * LEAST))
        axes.set_xlabel("index, largest first")
        axes.set_ylabel(ylabel)
        axes.margins(x=0.01)
        if title is not None:
            axes.set_title(printable(title))
        if len(lines) > len(COLORS):
            axes.legend(fontsize="x-small", ncols=2)
        elif lines:
            axes.legend()
    return fig
