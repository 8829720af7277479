"""The comparison page of a sweep, and its figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightly_collapse.report.figures import figure, to_png, to_svg
from lightly_collapse.report.page import render
from lightly_collapse.report.plots import log_lines

_Record = Mapping[str, Any]


def sweep_figures(results: Sequence[_Record]) -> dict[str, bytes]:
    """The figures as files.

    Args:
        results: records of finished cells; one seed a variant is drawn.

    Returns:
        From a file's name to its PNG bytes.
    """
    return {name: to_png(draw) for name, (draw, _) in _figures(results).items()}


def sweep_page(
    headings: Sequence[str],
    body: Sequence[Sequence[str]],
    rows: Sequence[_Record],
    results: Sequence[_Record],
    cells: int,
) -> str:
    """The page.

    Args:
        headings: of the table.
        body: its text, a line a variant.
        rows: the same as numbers, means and standard deviations.
        results: records of the finished cells that did not diverge.
        cells: how many cells the sweep has.

    Returns:
        A self-contained HTML page.
    """
    drawn = _figures(results) if results else {}
    return render(
        "sweep.html",
        title="Pretraining compared",
        headings=headings,
        body=body,
        verdict=_verdict(rows),
        finished=sum(row["seeds"] + row["failed"] for row in rows),
        cells=cells,
        results=results,
        figures=[(to_svg(draw, caption), caption) for draw, caption in drawn.values()],
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


def _figures(results: Sequence[_Record]) -> dict[str, tuple[Figure, str]]:
    first: dict[str, _Record] = {}
    for r in results:
        first.setdefault(r["variant"], r)

    def spectra(key: str) -> dict[str, list[float]]:
        return {
            variant: [s / r[key][0] for s in r[key]]
            for variant, r in first.items()
            if r[key] and r[key][0] > 0
        }

    ylabel = "singular value / largest"
    drawn = {
        "spectrum.png": (
            log_lines(spectra("spectrum"), ylabel),
            "Singular values of the centred representation of held-out images, each line divided "
            "by its largest.",
        ),
        "embedding-spectrum.png": (
            log_lines(spectra("embedding_spectrum"), ylabel),
            "The same of the embedding, which the loss acts on.",
        ),
        "weights.png": (
            _weights(first),
            "Median of the normalised eigenvalues of every layer's weight, from the first layer "
            "to the last; 1 where all filters are orthogonal and of one norm.",
        ),
    }
    if len({r["jitter"] for r in results}) > 1:
        drawn["jitter.png"] = (
            _against_jitter(results),
            "mLID of the representation against the strength of the colour jitter; a point a run.",
        )
    return drawn


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


def _weights(first: Mapping[str, _Record]) -> Figure:
    with figure() as (fig, axes):
        for variant, r in first.items():
            medians = [statistics.median(e) for e in r["weight_eigenvalues"].values()]
            axes.plot(range(1, len(medians) + 1), medians, label=variant, marker="o", markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer of the backbone")
        axes.set_ylabel("median normalised eigenvalue")
        axes.set_ylim(bottom=0)
        axes.legend()
    return fig
