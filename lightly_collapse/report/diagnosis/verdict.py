"""Is it collapsed, and where: the first two answers of a diagnosis."""

import math
from dataclasses import dataclass
from typing import Literal

from lightly_collapse.report.diagnosis.evidence import Evidence
from lightly_collapse.report.records import LayerRecord, ModelRecord

State = Literal["none", "dimensional", "complete", "unclear"]

COMPLETE_RANK = 2.0
"""Effective rank at and below which an output is a point or a line."""
COMPLETE_VARIATION = 0.05
"""Share of an untrained network's variation below which an output is constant."""
COLLAPSED_SHARE = 0.6
"""Share of collapsed dimensions from which a representation counts as collapsed."""
RANK_SHARE = 0.34
"""Share of an untrained network's effective rank below which a representation has lost rank."""
ROWS_A_DIMENSION = 2
"""Rows that a statement on dimensions needs at least, for each of them."""


@dataclass(frozen=True)
class Verdict:
    """Whether a representation is collapsed.

    Attributes:
        state: `none`; `dimensional`, some directions are lost; `complete`, hardly any is left;
            `unclear`, too few rows to tell.
        sentences: what was measured, with intervals.
    """

    state: State
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where rank is lost.

    Attributes:
        layer: the first layer in the order of the data whose rank is lost; empty for none.
        kind: `weight` where the layer's weights have lost singular values too, else `feature`.
        sentence: the same in words, with the numbers.
    """

    layer: str
    kind: Literal["weight", "feature", ""]
    sentence: str


def interval_text(layer: LayerRecord, name: str, digits: int = 1) -> str:
    """A number with its 95 % interval, where it has one, and what the interval is about."""
    value = layer.scalars.get(name)
    if value is None:
        return "not measurable"
    text = f"{value:.{digits}f}"
    if name in layer.intervals:
        low, high = (f"{end:.{digits}f}" for end in layer.intervals[name])
        corrected = f"{layer.corrected.get(name, value):.{digits}f}"
        before = "" if corrected == text else f"corrected for few rows {corrected}, "
        text += f" ({before}95 % interval {low} to {high})"
    return text


def judge(evidence: Evidence) -> Verdict:
    """Whether the representation is collapsed.

    Args:
        evidence: of the model.

    Returns:
        The verdict.
    """
    out, other = evidence.report.output, evidence.untrained.output
    rank, random_rank = out.scalars.get("effective_rank"), other.scalars.get("effective_rank")
    rows = int(out.scalars.get("rows") or 0)
    rtol = evidence.report.settings["collapse_rtol"]
    if rank is None or not rows:
        reason = next(iter([*evidence.problems, *out.problems.values()]), "no finite row")
        return Verdict("complete", (f"The output has no spectrum: {reason}.",))
    collapsed = out.scalars.get("collapsed_dimensions") or 0
    shown = interval_text(out, "effective_rank")
    sentences = [
        f"The effective rank of the representation is {shown} of {out.dimensions} dimensions, "
        f"measured on {rows} images; "
        + (
            f"with random weights the same network has {random_rank:.1f}."
            if random_rank
            else "with random weights it has none."
        ),
        f"{interval_text(out, 'collapsed_dimensions', 0)} dimensions are below {rtol:g} of the "
        "largest singular value.",
    ]
    share = evidence.variation / evidence.untrained_variation
    if rank <= COMPLETE_RANK or share < COMPLETE_VARIATION:
        sentences.append(
            f"The images differ by {evidence.variation:.2g} of the output's mean square, against "
            f"{evidence.untrained_variation:.2g} with random weights: hardly anything about an "
            "image is left in it."
        )
        return Verdict("complete", tuple(sentences))
    few = rows < ROWS_A_DIMENSION * out.dimensions
    available = min(out.dimensions, max(rows - 1, 1))
    lost_directions = collapsed - (out.dimensions - available) >= COLLAPSED_SHARE * available
    _, high = out.intervals.get("effective_rank", (rank, rank))
    threshold = RANK_SHARE * (random_rank or 0.0)
    if few and (lost_directions or rank < threshold):
        sentences.append(
            f"{rows} images are too few for {out.dimensions} dimensions: give "
            f"{ROWS_A_DIMENSION * out.dimensions} or more to tell."
        )
        return Verdict("unclear", tuple(sentences))
    if lost_directions or high < threshold:
        return Verdict("dimensional", tuple(sentences))
    return Verdict("none", tuple(sentences))


def locate(evidence: Evidence) -> Place:
    """The first layer whose rank is lost, against the same layer of an untrained network.

    Args:
        evidence: of the model.

    Returns:
        The place; with an empty name where no layer has lost rank.
    """
    report, untrained = evidence.report, evidence.untrained
    rtol = report.settings["collapse_rtol"]
    # In the order of the data: the report has the model's output first and the embedding last.
    inner = [layer for layer in report.layers[1:] if not layer.name.startswith("embedding")]
    for layer in [*inner, report.layers[0]]:
        reference = next((r for r in untrained.layers if r.name == layer.name), None)
        rank = layer.scalars.get("effective_rank")
        random_rank = reference.scalars.get("effective_rank") if reference else None
        lost = rank is None or (random_rank is not None and rank < RANK_SHARE * random_rank)
        dead = (layer.scalars.get("collapsed_dimensions") or 0) >= 0.5 * layer.dimensions
        was_dead = reference is not None and (
            (reference.scalars.get("collapsed_dimensions") or 0) >= 0.5 * layer.dimensions
        )
        if not lost and (was_dead or not dead):
            continue
        share = _weak_share(report, layer.name, rtol)
        before = _weak_share(untrained, layer.name, rtol)
        kind: Literal["weight", "feature"] = "weight" if share > before + 0.1 else "feature"
        words = "not measurable" if rank is None else f"{rank:.1f}"
        sentence = (
            f"Rank is lost first in {layer.name}: effective rank {words} of {layer.dimensions}, "
            f"with random weights {random_rank or math.nan:.1f}. "
        )
        sentence += (
            f"Its weights have lost {100 * share:.0f} % of their singular values."
            if kind == "weight"
            else f"Its weights have not: {100 * share:.0f} % of their singular values are below "
            f"{rtol:g} of the largest. The features are what collapsed."
        )
        return Place(layer.name, kind, sentence)
    if judge(evidence).state == "complete":
        sentence = (
            "No layer has lost rank against the same network with random weights: what is left of "
            "the differences between images spans as many directions as before, but is small."
        )
        return Place("output", "feature", sentence)
    return Place("", "", "No layer has lost rank against the same network with random weights.")


def _weak_share(report: ModelRecord, layer: str, rtol: float) -> float:
    """Share of singular values below rtol of the largest, of the weights in a layer."""
    prefix = "" if layer == "output" else f"{layer}."
    values = [
        e for w in report.weights if w.name.startswith(prefix) for e in w.normalized_eigenvalues
    ]
    return sum(e < rtol**2 for e in values) / len(values) if values else 0.0
