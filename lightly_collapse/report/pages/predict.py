"""The page and the figures of a prediction of collapse."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightly_collapse.report.pages.charts import Chart, line_chart
from lightly_collapse.report.pages.figures import COLORS, figure, panels, to_png, to_svg
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import relative
from lightly_collapse.theory import CollapsePrediction

_Record = Mapping[str, Any]
_LANDSCAPE = "landscape: trained to convergence"
_SHOWN = 8  # directions of either kind drawn as pictures


def spectrum_png(record: _Record) -> bytes:
    """The predicted spectrum as PNG.

    Args:
        record: what the command writes to `prediction.json`.

    Returns:
        The bytes of the file.
    """
    return to_png(_spectrum(record))


def predict_page(record: _Record, prediction: CollapsePrediction) -> str:
    """The report of a prediction.

    Args:
        record: what the command writes to `prediction.json`.
        prediction: the prediction, for its directions.

    Returns:
        A self-contained HTML page.
    """
    pictures = _pictures(prediction)
    return render(
        "predict.html",
        title="Which dimensions will collapse",
        p=record,
        verdict=_verdict(record),
        charts={"spectrum": _spectrum_chart(record), "signal": _left_out(record)},
        pictures=to_svg(
            pictures,
            "Directions of the largest and smallest predicted eigenvalues",
        )
        if pictures is not None
        else None,
    )


def _verdict(r: _Record) -> list[str]:
    low, high = r["collapsed_interval"]
    sentences = [
        f"{r['collapsed']} of {r['width']} dimensions are predicted to fall under {r['rtol']} of "
        f"the largest singular value ({r['confidence']:.0%} interval {low} to {high}). The "
        f"predicted effective rank is {r['effective_rank']:.1f} "
        f"({r['effective_rank_interval'][0]:.1f} to {r['effective_rank_interval'][1]:.1f}).",
    ]
    if r["leave_one_out"]:
        worst = max(r["leave_one_out"], key=lambda step: step["signal_cost"])
        sentences.append(
            f"{worst['name']} costs most: it takes {worst['signal_cost']:.1f} of "
            f"{worst['signal']:.1f} dimensions' worth of signal and collapses "
            f"{worst['collapsed_cost']} dimensions more."
        )
    if r["n_images"] < 10 * r["features"]:
        sentences.append(
            f"{r['n_images']} images are few for {r['features']} features: chance makes weak "
            "directions look stronger than they are. The intervals show it; more images, or "
            "smaller pooled images, narrow them."
        )
    return sentences


def _positive(values: Any) -> list[float]:
    return [v if v > 0 else math.nan for v in values]


def _spectrum(r: _Record) -> Figure:
    with figure() as (fig, axes):
        largest = max(r["spectrum"][0], 1e-12)
        index = range(1, len(r["spectrum"]) + 1)
        low, high = (np.array(end) / largest for end in r["spectrum_interval"])
        floor = _least(r)
        axes.fill_between(
            index, low.clip(floor), high.clip(floor), color=COLORS[1], alpha=0.25, linewidth=0,
            label=f"{r['confidence']:.0%} interval",
        )  # fmt: skip
        axes.plot(
            index, _positive(np.array(r["spectrum"]) / largest), color=COLORS[1],
            label=_LANDSCAPE,
        )  # fmt: skip
        if "finite_time" in r:
            values = np.array(r["finite_time"]["spectrum"])
            axes.plot(
                index, _positive(values / values[0]), color=COLORS[3],
                label=_dynamics(r),
            )  # fmt: skip
        axes.axhline(r["rtol"], linestyle="--", linewidth=1, color=COLORS[0], label="tolerance")
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.set_xlabel("index, largest first")
        axes.set_ylabel("singular value / largest")
        axes.margins(x=0.01)
        axes.legend()
    return fig


def _spectrum_chart(r: _Record) -> Chart | None:
    largest = max(r["spectrum"][0], 1e-12)
    lines = {_LANDSCAPE: [v / largest for v in r["spectrum"]]}
    if "finite_time" in r:
        lines[_dynamics(r)] = relative(r["finite_time"]["spectrum"])
    low, high = ([v / largest for v in end] for end in r["spectrum_interval"])
    return line_chart(
        range(1, len(r["spectrum"]) + 1),
        lines,
        "index, largest first",
        "singular value / largest",
        "Predicted singular values against their index, with their interval",
        log=True,
        levels=[r["rtol"]],
        bands={_LANDSCAPE: (low, high)},
        least=_least(r),
    )


def _left_out(r: _Record) -> Chart | None:
    if not r["leave_one_out"]:
        return None
    return line_chart(
        range(1, r["width"] + 1),
        {
            "all augmentations": r["spectrum"],
            **{f"without {step['name']}": step["spectrum"] for step in r["leave_one_out"]},
        },
        "index, largest first",
        "predicted singular value",
        "Predicted spectrum without each augmentation, one line each",
        log=True,
        least=1e-4,
    )


def _least(r: _Record) -> float:
    """Where the axis ends: well below the tolerance, above what is rounding error."""
    return float(max(1e-5, r["rtol"] / 100))


def _dynamics(r: _Record) -> str:
    return f"linear dynamics: after {r['finite_time']['steps']} steps"


def _pictures(p: CollapsePrediction) -> Figure | None:
    if p.feature_shape is None:
        return None
    count = min(_SHOWN, len(p.patterns))
    rows = ((p.patterns[:count], p.signal_fraction[:count]),
            (p.patterns[-count:].flip(0), p.signal_fraction[-count:].flip(0)))  # fmt: skip
    with panels(2, count, height=2.6) as (fig, axes):
        for row, (patterns, fractions) in enumerate(rows):
            for column in range(count):
                image = patterns[column].reshape(p.feature_shape).numpy()
                image = 0.5 + image / (2 * np.abs(image).max())
                ax = axes[row * count + column]
                if len(image) == 3:
                    ax.imshow(image.transpose(1, 2, 0))
                else:
                    ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.grid(visible=False)
                ax.set_title(f"{max(float(fractions[column]), 0.0):.2g}", fontsize=8)
            axes[row * count].set_ylabel(("largest", "smallest")[row])
    return fig
