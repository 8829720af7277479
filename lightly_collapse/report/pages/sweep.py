"""The comparison page of a sweep, and its figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightly_collapse.report.pages.charts import Chart, line_chart, spectra
from lightly_collapse.report.pages.figures import figure, panels, to_png, use_scale_for_many
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import relative

_Record = Mapping[str, Any]


def sweep_figures(results: Sequence[_Record]) -> dict[str, bytes]:
    """The figures as files.

    Args:
        results: records of finished cells; one seed a variant is drawn.

    Returns:
        From a file's name to its PNG bytes.
    """
    return {name: to_png(drawn) for name, drawn in _figures(results).items()}


def sweep_page(
    headings: Sequence[str],
    measures: Sequence[str],
    body: Sequence[Sequence[str]],
    rows: Sequence[_Record],
    results: Sequence[_Record],
    cells: int,
) -> str:
    """The page.

    Args:
        headings: of the table.
        measures: the measure in each column, for what is said of it; empty where there is none.
        body: its text, a line a variant.
        rows: the same as numbers, means and standard deviations.
        results: records of the finished cells that did not diverge.
        cells: how many cells the sweep has.

    Returns:
        A self-contained HTML page.
    """
    drawn = _charts(results) if results else {}
    charts = {id: chart for id, (_, _, chart) in drawn.items() if chart}
    return render(
        "sweep.html",
        title="Pretraining compared",
        headings=headings,
        body=body,
        verdict=_verdict(rows),
        finished=sum(row["seeds"] + row["failed"] for row in rows),
        cells=cells,
        results=results,
        columns=measures,
        charts=charts,
        titles={id: title for id, (title, _, _) in drawn.items()},
        captions={id: caption for id, (_, caption, _) in drawn.items()},
    )


def _verdict(rows: Sequence[_Record]) -> list[str]:
    sentences = []
    for name, what, factor, unit in (
        ("effective_rank", "effective rank of the representation", 1, ""),
        ("linear", "linear accuracy", 100, " %"),
    ):
        known = [row for row in rows if row[name] is not None]
        if len(known) < 2:
            continue
        best = max(known, key=lambda row: row[name][0])
        least = min(known, key=lambda row: row[name][0])
        sentences.append(
            f"The {what} is highest with {best['variant']} ({_with_spread(best[name], factor)}"
            f"{unit}) and lowest with {least['variant']} ({_with_spread(least[name], factor)}"
            f"{unit})."
        )
    if any(row["seeds"] < 2 for row in rows):
        sentences.append(
            "Some variants have one seed only: nothing says how much of their difference is chance."
        )
    return sentences


def _with_spread(value: tuple[float, float | None], factor: float) -> str:
    mean, spread = value
    return f"{factor * mean:.1f}" + (f" ± {factor * spread:.1f}" if spread is not None else "")


def _first_seeds(results: Sequence[_Record]) -> dict[str, _Record]:
    first: dict[str, _Record] = {}
    for r in results:
        first.setdefault(r["variant"], r)
    return first


def _figures(results: Sequence[_Record]) -> dict[str, Figure]:
    groups = _groups(_first_seeds(results))
    drawn = {"spectrum.png": _spectra(groups), "weights.png": _weights(groups)}
    if _jitter_varies(results):
        drawn["jitter.png"] = _against_jitter(results)
    return drawn


def _jitter_varies(results: Sequence[_Record]) -> bool:
    return len({r["jitter"] for r in results}) > 1


def _charts(results: Sequence[_Record]) -> dict[str, tuple[str, str, Chart | None]]:
    """Title, caption and chart by identifier; all variants in each, for the reader to choose."""
    first = _first_seeds(results)
    drawn: dict[str, tuple[str, str, Chart | None]] = {}
    for key, what, of in (
        ("spectrum", "representation", "the representation"),
        ("embedding_spectrum", "embedding", "the embedding that the loss acts on"),
    ):
        drawn[what] = (
            f"Spectrum of the {what}",
            f"Singular values of {of} on held-out images, centred, each line divided by its "
            "largest. One seed a variant. The dashed line is the tolerance of “collapsed”.",
            spectra(
                {name: relative(r[key]) for name, r in first.items() if r[key]},
                "singular value / largest",
                f"Singular values of {of} against their index, one line a variant",
                results[0]["collapse_rtol"],
            ),
        )
    medians = {
        name: [statistics.median(e) for e in r["weight_eigenvalues"].values()]
        for name, r in first.items()
    }
    layers = range(max(map(len, medians.values())))
    drawn["weights"] = (
        "Weights",
        "Median of the normalised eigenvalues of every layer's weight, from the first layer to "
        "the last; 1 where all filters are orthogonal and of one norm. One seed a variant.",
        line_chart(
            [i + 1 for i in layers],
            {n: [m[i] if i < len(m) else None for i in layers] for n, m in medians.items()},
            "layer of the backbone",
            "median normalised eigenvalue",
            "Median normalised eigenvalue of each weight, one line a variant",
            mark="line and points",
        ),
    )
    if _jitter_varies(results):
        names = dict.fromkeys(r["regularizer"] or "no regularizer" for r in results)
        drawn["jitter"] = (
            "Colour jitter",
            "mLID of the representation against the strength of the colour jitter; a point a run.",
            line_chart(
                [r["jitter"] for r in results],
                {n: [r["mlid"] if (r["regularizer"] or "no regularizer") == n else None
                     for r in results] for n in names},
                "strength of the colour jitter",
                "mLID",
                "mLID against the strength of the colour jitter, a point a run",
                mark="points",
            ),
        )  # fmt: skip
    return drawn


_FEW = 6
"""So many lines leave room for a legend among them."""


def _groups(first: Mapping[str, _Record]) -> dict[str, dict[str, _Record]]:
    """What is drawn together: the methods without regularizer, and each with its regularizers."""
    plain = {r["method"]: r for r in first.values() if not r["regularizer"]}
    title = "without regularizer" if len(plain) < len(first) else ""
    groups = {title: plain} if len(plain) > 1 else {}
    for method in dict.fromkeys(r["method"] for r in first.values()):
        own = [r for r in first.values() if r["method"] == method]
        if len(own) > 1:
            groups[method] = {r["regularizer"] or "none": r for r in own}
    return groups or {"": dict(first)}


def _spectra(groups: Mapping[str, Mapping[str, _Record]]) -> Figure:
    with panels(len(groups), 2, width=9, height=3.3 * len(groups)) as (fig, axes):
        places = iter(axes)
        for title, records in groups.items():
            for key, what in (("spectrum", "representation"), ("embedding_spectrum", "embedding")):
                ax = next(places)
                use_scale_for_many(ax, len(records))
                for label, r in records.items():
                    if r[key] and r[key][0] > 0:
                        values = [s / r[key][0] if s > 0 else math.nan for s in r[key]]
                        ax.plot(range(1, len(values) + 1), values, label=label)
                ax.set_yscale("log")
                ax.set_title(f"{title}: {what}" if title else what)
                ax.set_xlabel("index, largest first")
                ax.set_ylabel("singular value / largest")
                if len(records) <= _FEW:
                    ax.legend(fontsize="small")
            if len(records) > _FEW:  # one for both, beside the lines, which it would cover
                ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return fig


def _weights(groups: Mapping[str, Mapping[str, _Record]]) -> Figure:
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    with panels(rows, columns, width=3 + 3 * columns, height=3.3 * rows) as (fig, axes):
        for ax in axes[len(groups) :]:
            ax.remove()
        for ax, (title, records) in zip(axes, groups.items(), strict=False):
            use_scale_for_many(ax, len(records))
            for label, r in records.items():
                medians = [statistics.median(e) for e in r["weight_eigenvalues"].values()]
                ax.plot(range(1, len(medians) + 1), medians, label=label, marker="o", markersize=3)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_title(title)
            ax.set_xlabel("layer of the backbone")
            ax.set_ylabel("median normalised eigenvalue")
            ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend above the lines
            ax.legend(fontsize="small", ncols=3, loc="upper center")
    return fig


def _against_jitter(results: Sequence[_Record]) -> Figure:
    with figure() as (fig, axes):
        for regularizer in dict.fromkeys(r["regularizer"] for r in results):
            points = sorted(
                (r["jitter"], r["mlid"]) for r in results if r["regularizer"] == regularizer
            )
            axes.plot(*zip(*points, strict=True), "o", label=regularizer or "no regularizer")
        axes.set_xlabel("strength of the colour jitter")
        axes.set_ylabel("mLID")
        axes.legend()
    return fig
