"""The page of one report and the page that compares several."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lightly_collapse.io.spectra import TrainingSpectra
from lightly_collapse.report.glossary import GLOSSARY, Entry
from lightly_collapse.report.pages.charts import (
    Chart,
    heat_map,
    histogram,
    spectra,
    spectra_over_training,
)
from lightly_collapse.report.pages.plots import log_lines
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.pages.similarity import similarity_map
from lightly_collapse.report.records import LayerRecord, ModelRecord, format_value, relative
from lightly_collapse.report.similarity_record import LayerSimilarity

# As many as fit the width of a printed page.
_OF_LAYERS = (
    "rankme",
    "effective_rank",
    "collapsed_dimensions",
    "participation_ratio",
    "alpha_req",
    "mlid",
    "two_nn",
)

_OF_TOKENS = ("patch_rank", "mean_token_cosine", "norm_outliers", "gram_drift")


def measure_page(report: ModelRecord, training: TrainingSpectra | None = None) -> str:
    """The page of one report.

    Args:
        report: what `measure` returned.
        training: spectra over the training that made the model, as the monitor recorded them.

    Returns:
        A self-contained HTML page.
    """
    out = report.output
    # From the input to the output, as data flows; the output stands first in the report.
    flow = [r for r in [*report.layers[1:], out] if r.spectrum]
    weights = {
        w.name: w.normalized_eigenvalues for w in report.weights if any(w.normalized_eigenvalues)
    }
    return render(
        "measure.html",
        title=f"Dimensional collapse: {report.name}",
        report=report,
        output=out,
        verdict=report.verdict(),
        glossary=_shown([out]),
        format_value=format_value,
        of_layers={n: GLOSSARY[n] for n in _OF_LAYERS},
        dense=[r for r in report.layers if "patch_rank" in r.scalars],
        of_tokens={
            n: GLOSSARY[n] for n in _OF_TOKENS if any(n in r.scalars for r in report.layers)
        },
        charts={
            "spectrum": spectra(
                _spectra(report),
                "singular value / largest",
                "Singular values of each layer against their index, one line a layer",
                report.settings["collapse_rtol"],
            ),
            "features": heat_map(
                {_label(r): r.normalized_eigenvalues for r in flow},
                "eigenvalue / largest",
                "Normalised eigenvalues of the features, one row a layer",
            ),
            "training": spectra_over_training(
                training,
                "Singular values of each layer against their index, at a step of the training",
            )
            if training
            else None,
            "weights": heat_map(
                weights,
                "eigenvalue / largest",
                "Normalised eigenvalues of the weights, one row a weight",
            ),
            "weight_spectra": spectra(
                weights,
                "eigenvalue / largest",
                "Normalised eigenvalues of the weights against their index, one line a weight",
            ),
            "lid": _lid([(out.name, out)]),
        },
    )


def spectrum_plot(report: ModelRecord) -> Figure:
    """The centred spectrum of every layer, divided by its largest singular value.

    Args:
        report: what `measure` returned.

    Returns:
        The figure, one line a layer.
    """
    return log_lines(
        _spectra(report),
        "singular value / largest",
        report.settings["collapse_rtol"],
        title=report.name,
    )


def compare_page(
    reports: Sequence[ModelRecord],
    differences: Sequence[str] = (),
    best: Mapping[str, int | None] | None = None,
    similarity: LayerSimilarity | None = None,
) -> str:
    """The page that overlays several reports.

    Args:
        reports: two or more, of different names.
        differences: sentences on which numbers can be told apart.
        best: by name the index of the report whose number is better, None where none is.
        similarity: of the layers of two of the models.

    Returns:
        A self-contained HTML page.
    """
    outputs = [(r.name, r.output) for r in reports]
    layers = [
        (f"{_label(layer)}, {r.name}", layer)  # the layer first: long labels are cut off
        for r in reports
        for layer in [*r.layers[1:], r.output]
        if layer.spectrum
    ]
    return render(
        "compare.html",
        title="Dimensional collapse compared",
        reports=reports,
        outputs=outputs,
        glossary=_shown([layer for _, layer in outputs]),
        best=best or {},
        differences=[*differences, *([similarity.summary()] if similarity else [])],
        format_value=format_value,
        charts={
            "spectrum": spectra(
                _outputs(reports),
                "singular value / largest",
                "Singular values of each model's representation against their index",
                reports[0].settings["collapse_rtol"],
            ),
            "lid": _lid(outputs),
            "features": heat_map(
                {name: layer.normalized_eigenvalues for name, layer in layers},
                "eigenvalue / largest",
                "Normalised eigenvalues of the features, one row a layer of each model",
            ),
            "layers": spectra(
                {name: relative(layer.spectrum) for name, layer in layers},
                "singular value / largest",
                "Singular values of each layer of each model against their index",
                reports[0].settings["collapse_rtol"],
            ),
            "similarity": similarity_map(similarity) if similarity else None,
            "weights": spectra(
                {
                    f"{r.name}, {r.weights[-1].name}": r.weights[-1].normalized_eigenvalues
                    for r in reports
                    if r.weights and any(r.weights[-1].normalized_eigenvalues)
                },
                "eigenvalue / largest",
                "Normalised eigenvalues of each model's last weight against their index",
            ),
        },
    )


def compare_plot(reports: Sequence[ModelRecord]) -> Figure:
    """The centred spectra of the outputs, each divided by its largest singular value."""
    return log_lines(
        _outputs(reports), "singular value / largest", reports[0].settings["collapse_rtol"]
    )


def _outputs(reports: Sequence[ModelRecord]) -> dict[str, list[float]]:
    return {
        f"{r.name} ({r.output.dimensions})": relative(r.output.spectrum)
        for r in reports
        if r.output.spectrum
    }


def _spectra(report: ModelRecord) -> dict[str, list[float]]:
    return {_label(r): relative(r.spectrum) for r in report.layers if r.spectrum}


def _label(layer: LayerRecord) -> str:
    return f"{layer.name} ({layer.dimensions})"


def _shown(layers: Sequence[LayerRecord]) -> dict[str, Entry]:
    return {n: e for n, e in GLOSSARY.items() if any(n in r.scalars for r in layers)}


def _lid(layers: Sequence[tuple[str, LayerRecord]]) -> Chart | None:
    return histogram(
        {name: layer.lid for name, layer in layers},
        "local intrinsic dimensionality",
        {name: layer.scalars.get("mlid") or 0.0 for name, layer in layers if layer.lid},
        "Histogram of the local intrinsic dimensionality of the samples, the mean marked",
    )
