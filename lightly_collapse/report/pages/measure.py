"""The page of one report and the page that compares several."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from lightly_collapse.report.glossary import GLOSSARY, Entry
from lightly_collapse.report.pages.figures import to_svg
from lightly_collapse.report.pages.plots import heat_map, histogram, log_lines
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import LayerRecord, ModelRecord, format_value

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


def measure_page(report: ModelRecord) -> str:
    """The page of one report.

    Args:
        report: what `measure` returned.

    Returns:
        A self-contained HTML page.
    """
    out = report.output
    features = {r.name: r.normalized_eigenvalues for r in report.layers if r.spectrum}
    # From the input to the output, as data flows; the output stands first in the report.
    flow = {
        n: features[n] for n in [*(r.name for r in report.layers[1:]), out.name] if n in features
    }
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
        spectrum=to_svg(
            spectrum_plot(report),
            "Singular values of each layer against their index, one line a layer",
        )
        if features
        else None,
        feature_map=_heat_map(flow, "Normalised eigenvalues of the features, one row a layer"),
        weight_map=_heat_map(weights, "Normalised eigenvalues of the weights, one row a weight"),
        lid=_lid([(out.name, out)]),
        of_layers={n: GLOSSARY[n] for n in _OF_LAYERS},
        dense=[r for r in report.layers if "patch_rank" in r.scalars],
        of_tokens={
            n: GLOSSARY[n] for n in _OF_TOKENS if any(n in r.scalars for r in report.layers)
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
        {
            f"{r.name} ({r.dimensions})": [s / r.spectrum[0] for s in r.spectrum]
            for r in report.layers
            if r.spectrum
        },
        "singular value / largest",
        report.settings["collapse_rtol"],
        title=report.name,
    )


def compare_page(reports: Sequence[ModelRecord]) -> str:
    """The page that overlays several reports.

    Args:
        reports: two or more, of different names.

    Returns:
        A self-contained HTML page.
    """
    outputs = [(r.name, r.output) for r in reports]
    return render(
        "compare.html",
        title="Dimensional collapse compared",
        reports=reports,
        outputs=outputs,
        glossary=_shown([layer for _, layer in outputs]),
        best={name: _best(name, reports) for name in GLOSSARY},
        format_value=format_value,
        spectrum=to_svg(
            compare_plot(reports),
            "Singular values of each model's representation against their relative index",
        ),
        lid=_lid(outputs),
        feature_map=_heat_map(
            {
                f"{r.name}: {layer.name}": layer.normalized_eigenvalues
                for r in reports
                for layer in [*r.layers[1:], r.output]
                if layer.spectrum
            },
            "Normalised eigenvalues of the features, one row a layer of each model",
        ),
        weight_lines=to_svg(
            log_lines(
                {
                    r.name: r.weights[-1].normalized_eigenvalues
                    for r in reports
                    if r.weights and any(r.weights[-1].normalized_eigenvalues)
                },
                "eigenvalue / largest",
            ),
            "Normalised eigenvalues of each model's last weight",
        ),
    )


def compare_plot(reports: Sequence[ModelRecord]) -> Figure:
    """The centred spectra of the outputs, each divided by its largest singular value."""
    return log_lines(
        {
            f"{r.name} ({r.output.dimensions})": [
                s / r.output.spectrum[0] for s in r.output.spectrum
            ]
            for r in reports
            if r.output.spectrum
        },
        "singular value / largest",
        reports[0].settings["collapse_rtol"],
    )


def _shown(layers: Sequence[LayerRecord]) -> dict[str, Entry]:
    return {n: e for n, e in GLOSSARY.items() if any(n in r.scalars for r in layers)}


def _best(name: str, reports: Sequence[ModelRecord]) -> int | None:
    better = GLOSSARY[name].better
    values = [r.output.scalars.get(name) for r in reports]
    known = [v for v in values if v is not None]
    if better == "neither" or len(known) < 2 or len(set(known)) == 1:
        return None
    return values.index(max(known) if better == "higher" else min(known))


def _heat_map(lines: dict[str, list[float]], description: str) -> Markup | None:
    if not lines:
        return None
    return to_svg(heat_map(lines, "eigenvalue / largest"), description)


def _lid(layers: Sequence[tuple[str, LayerRecord]]) -> Markup | None:
    values = {name: layer.lid for name, layer in layers if layer.lid}
    if not values:
        return None
    means = {name: layer.scalars["mlid"] or 0.0 for name, layer in layers if layer.lid}
    return to_svg(
        histogram(values, "local intrinsic dimensionality", means),
        "Histogram of the local intrinsic dimensionality of the samples, the mean marked",
    )
