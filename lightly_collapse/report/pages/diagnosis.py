"""The page of a diagnosis."""

import math
from collections.abc import Mapping, Sequence

from lightly_collapse.report.diagnosis.records import DiagnosisRecord
from lightly_collapse.report.pages.charts import Chart, line_chart, spectra
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.records import LayerRecord, ModelRecord, format_value, relative

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
    return render(
        "diagnosis.html",
        title=f"Diagnosis: {diagnosis.name}",
        d=diagnosis,
        answer=_STATES[diagnosis.verdict.state],
        rtol=rtol,
        format_value=format_value,
        layers=_rows(diagnosis.evidence.report, diagnosis.evidence.untrained),
        charts={
            "spectrum": spectra(
                {
                    label: relative(layer.spectrum)
                    for label, layer in (
                        ("random weights", diagnosis.evidence.untrained.output),
                        ("this model", diagnosis.evidence.report.output),
                    )
                    if layer.spectrum
                },
                "singular value / largest",
                "Singular values of the representation, of this model and of random weights",
                rtol,
            ),
            "layers": _by_layer(diagnosis.evidence.report, diagnosis.evidence.untrained),
            "history": _history(diagnosis.evidence.history),
        },
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


def _by_layer(report: ModelRecord, untrained: ModelRecord) -> Chart | None:
    rows = _rows(report, untrained)
    return line_chart(
        [layer.name for layer, _ in rows],
        {
            "random weights": [_share(other) for _, other in rows],
            "this model": [_share(layer) for layer, _ in rows],
        },
        "layer",
        "effective rank / width",
        "Effective rank over width of every layer, of this model and of random weights",
        mark="line and points",
    )


def _history(rows: Sequence[Mapping[str, float]]) -> Chart | None:
    key = next((k for k in ("step", "epoch") if rows and k in rows[0]), None)
    names = [n for n in (rows[0] if rows else {}) if n.endswith(_RANK)]
    if key is None or not names or len(rows) < 2:
        return None
    return line_chart(
        [row[key] for row in rows],
        {name.removesuffix(_RANK): [row.get(name) for row in rows] for name in names},
        key,
        "effective rank",
        "Effective rank of the watched layers during training",
        log=True,
    )
