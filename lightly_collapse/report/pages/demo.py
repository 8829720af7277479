"""The demo's page and its figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lightly_collapse.io.spectra import TrainingSpectra
from lightly_collapse.report.pages.charts import spectra, spectra_over_training
from lightly_collapse.report.pages.figures import to_png
from lightly_collapse.report.pages.plots import log_lines
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import relative

_Record = Mapping[str, Any]


def spectrum_png(record: _Record) -> bytes:
    """The representations' spectra as PNG, one line a method.

    Args:
        record: what the demo writes to `results.json`.

    Returns:
        The bytes of the file.
    """
    return to_png(_spectrum_figure(record))


def demo_page(record: _Record) -> str:
    """The demo's report.

    Args:
        record: what the demo writes to `results.json`.

    Returns:
        A self-contained HTML page.
    """
    results = record["results"]
    return render(
        "demo.html",
        title="Dimensional collapse on handwritten digits",
        width=len(results[0]["spectrum"]),
        verdict=_verdict(record),
        charts={
            "spectrum": spectra(
                _spectra(record),
                "singular value / largest",
                "Singular values of the representation against their index, one line a method",
                record["settings"]["collapse_rtol"],
            ),
            "training": spectra_over_training(
                _training(results),
                "Singular values of the representation against their index, after an epoch",
            ),
            "weights": spectra(
                {r["title"]: r["weight_eigenvalues"] for r in results},
                "normalised eigenvalue of the last convolution",
                "Normalised eigenvalues of the last convolution's weight, one line a method",
            ),
        },
        **record,
    )


def _training(results: Sequence[_Record]) -> TrainingSpectra:
    epochs = range(min(len(r["training_spectra"]) for r in results))
    return TrainingSpectra(
        "epoch",
        list(epochs),
        [{r["title"]: dict(enumerate(r["training_spectra"][epoch])) for r in results}
         for epoch in epochs],
    )  # fmt: skip


def _verdict(record: _Record) -> list[str]:
    results = record["results"]
    width = len(results[0]["spectrum"])
    sentences = []
    if len(results) > 1:
        most = max(results, key=lambda r: r["effective_rank"])
        least = min(results, key=lambda r: r["effective_rank"])
        sentences.append(
            f"{most['title']} uses the most dimensions (effective rank {most['effective_rank']:.1f}"
            f" of {width}), {least['title']} the fewest ({least['effective_rank']:.1f})."
        )
    collapsed = [r for r in results if r["collapsed_dimensions"]]
    tolerance = record["settings"]["collapse_rtol"]
    counts = "; ".join(f"{r['title']}: {r['collapsed_dimensions']}" for r in collapsed)
    sentences.append(
        f"Dimensions of {width} whose singular value is below {tolerance} of the largest: "
        + (f"{counts}; none elsewhere." if len(collapsed) < len(results) else f"{counts}.")
        if collapsed
        else f"No method has a dimension whose singular value is below {tolerance} of the largest."
    )
    sentences.append(_accuracy_sentence(results, record["images"]["held out"]))
    return sentences


def _accuracy_sentence(results: Sequence[_Record], images: int) -> str:
    values = [r["linear"] for r in results]
    low, high = min(values), max(values)
    mean = sum(values) / len(values)
    error = 100 * math.sqrt(mean * (1 - mean) / images)
    noise = f"the standard error of one accuracy on {images} images is {error:.1f} points"
    if len(values) == 1:
        return f"Linear probe {100 * high:.1f} %; {noise}."
    span = f"Linear probe from {100 * low:.1f} to {100 * high:.1f} %; {noise}, so"
    # Two accuracies differ beyond chance from about twice the error of a difference.
    threshold = 2 * math.sqrt(2) * error
    if 100 * (high - low) <= threshold:
        return f"{span} these differences are within noise: they give no order."
    return f"{span} differences above about {threshold:.1f} points are more than noise."


def _spectrum_figure(record: _Record) -> Figure:
    return log_lines(
        _spectra(record), "singular value / largest", record["settings"]["collapse_rtol"]
    )


def _spectra(record: _Record) -> dict[str, list[float]]:
    return {r["title"]: relative(r["spectrum"]) for r in record["results"]}
