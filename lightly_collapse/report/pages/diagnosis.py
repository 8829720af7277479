"""The page of a diagnosis."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from lightly_collapse.report.diagnosis.records import DiagnosisRecord
from lightly_collapse.report.pages.figures import COLORS, figure, to_svg, use_scale_for_many
from lightly_collapse.report.pages.plots import log_lines
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import LayerRecord, ModelRecord, format_value

_STATES = {
    "none": "No",
    "dimensional": "Yes: dimensional collapse",
    "complete": "Yes: complete collapse",
    "unclear": "It cannot be told",
}
_RANK = "/effective_rank"


def diagnosis_page(diagnosis: DiagnosisRecord) -> str:
    """The page of a diagnosis: whether, where, why, and what to change.

    Args:
        diagnosis: what `diagnose` returned.

    Returns:
        A self-contained HTML page.
    """
    rtol = diagnosis.evidence.report.settings["collapse_rtol"]
    spectra = {
        label: [s / layer.spectrum[0] for s in layer.spectrum]
        for label, layer in (
            ("random weights", diagnosis.evidence.untrained.output),
            ("this model", diagnosis.evidence.report.output),
        )
        if layer.spectrum and layer.spectrum[0] > 0
    }
    return render(
        "diagnosis.html",
        title=f"Diagnosis: {diagnosis.name}",
        d=diagnosis,
        answer=_STATES[diagnosis.verdict.state],
        rtol=rtol,
        format_value=format_value,
        layers=_rows(diagnosis.evidence.report, diagnosis.evidence.untrained),
        by_layer=to_svg(
            _by_layer(diagnosis.evidence.report, diagnosis.evidence.untrained),
            "Effective rank over width of every layer, of this model and of random weights",
        ),
        spectrum=to_svg(
            log_lines(spectra, "singular value / largest", rtol),
            "Singular values of the representation, of this model and of random weights",
        )
        if spectra
        else None,
        history=_history(diagnosis.evidence.history),
    )


def _flow(report: ModelRecord) -> list[LayerRecord]:
    """The layers in the order of the data: the output stands first in a report."""
    inner = [r for r in report.layers[1:] if not r.name.startswith("embedding")]
    return [*inner, report.layers[0], *(r for r in report.layers if r.name == "embedding")]


def _share(layer: LayerRecord | None) -> float:
    rank = layer.scalars.get("effective_rank") if layer is not None else None
    return math.nan if rank is None or layer is None else rank / layer.dimensions


def _rows(
    report: ModelRecord, untrained: ModelRecord
) -> list[tuple[LayerRecord, LayerRecord | None]]:
    known = {layer.name: layer for layer in untrained.layers}
    return [(layer, known.get(layer.name)) for layer in _flow(report)]


def _by_layer(report: ModelRecord, untrained: ModelRecord) -> Figure:
    rows = _rows(report, untrained)
    names = [layer.name for layer, _ in rows]
    with figure(height=3.2) as (fig, axes):
        axes.plot(
            names, [_share(other) for _, other in rows], "o--", color=COLORS[0],
            label="random weights",
        )  # fmt: skip
        axes.plot(
            names, [_share(layer) for layer, _ in rows], "o-", color=COLORS[1], label="this model"
        )
        axes.set_ylim(0, 1)
        axes.set_ylabel("effective rank / width")
        axes.tick_params(axis="x", labelrotation=20 if len(names) <= 8 else 70)
        axes.legend()
    return fig


def _history(rows: Sequence[Mapping[str, float]]) -> Markup | None:
    key = next((k for k in ("step", "epoch") if rows and k in rows[0]), None)
    names = [n for n in (rows[0] if rows else {}) if n.endswith(_RANK)]
    if key is None or not names or len(rows) < 2:
        return None
    with figure(height=3.4) as (fig, axes):
        use_scale_for_many(axes, len(names))
        for name in names:
            axes.plot(
                [row[key] for row in rows],
                [row.get(name, math.nan) for row in rows],
                label=name.removesuffix(_RANK),
            )
        axes.set_yscale("log")
        axes.set_xlabel(key)
        axes.set_ylabel("effective rank")
        axes.legend(fontsize="small", ncols=2)
    return to_svg(fig, "Effective rank of the watched layers during training")
