"""Why: every cause is tested by a measurement, which is shown with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lightly_collapse.report.diagnosis.evidence import Evidence, ViewsEvidence
from lightly_collapse.report.diagnosis.verdict import Verdict

# Set on 155 runs of the development part of the bench of runs with a known answer.
FEW_DISTINCT = 0.5
"""Share of distinct training images below which duplicates are a cause."""
LOW_RANK = (16, 0.25)
"""Width of an embedding of low rank: below this, and this share of the representation's."""
GROWN, SHRUNK = 2.5, 0.2
"""Median norm of the weights, over that at random initialisation, of a blow-up and of a decay."""
LESSENED = 2 / 3
"""Share of an untrained network's effective rank below which such norms, or a term that is switched
off, are a cause even where the representation does not count as collapsed."""
DEAD = 0.5
"""Share of dead channels in one ReLU."""
UNMATCHED = 0.15
"""Share of images whose views are told from those of others, below which they share too little."""
DROWNED = 4 / 3
"""Without a step that no published views have, so much oftener views are told apart: a cause."""
_PUBLISHED_STEPS = ("crop", "flip", "vertical flip", "colour jitter", "gray", "blur", "solarize")
WEAK_WEIGHTS = 0.3
"""Share of singular values that a weight has lost."""


@dataclass(frozen=True)
class Cause:
    """One cause and its test.

    Attributes:
        name: `duplicates`, `projector`, `weight_decay`, `learning_rate`, `dead_units`,
            `augmentation`, `objective`, `weights` or `samples`.
        title: what it is, in a few words.
        found: whether the measurement says so; None where it could not be made.
        measured: the measurement, in a sentence.
        detail: which part of it, such as the name of an augmentation.
    """

    name: str
    title: str
    found: bool | None
    measured: str
    detail: str = ""


def find_causes(evidence: Evidence, verdict: Verdict) -> list[Cause]:
    """Test every cause.

    Args:
        evidence: of the model and its training.
        verdict: whether the model is collapsed.

    Returns:
        The causes, those that were found first and among them the most specific first.
    """
    collapsed = verdict.state in ("dimensional", "complete")
    lessened = collapsed or _lessened(evidence)
    causes = [
        _duplicates(evidence),
        _projector(evidence),
        *_norms(evidence, lessened),
        _dead_units(evidence),
        _augmentation(evidence, collapsed),
        _weights(evidence, collapsed),
        _samples(verdict),
    ]
    causes.insert(-2, _objective(evidence, verdict, lessened, causes))
    return sorted(causes, key=lambda cause: cause.found is not True)


def _duplicates(evidence: Evidence) -> Cause:
    title = "the training images are copies of a few"
    images, distinct = evidence.images, evidence.distinct
    if not images or distinct is None:
        return Cause("duplicates", title, None, "The training images are not known.")
    return Cause(
        "duplicates",
        title,
        images > 1 and distinct < FEW_DISTINCT * images,
        f"{distinct} of {images} training images differ "
        f"(a cause below {100 * FEW_DISTINCT:.0f} %).",
        f"{distinct} of {images}",
    )


def _projector(evidence: Evidence) -> Cause:
    title = "no projector between representation and loss, or one of low rank"
    report = evidence.report
    embedding = next((r for r in report.layers if r.name.startswith("embedding")), None)
    # A matter of structure, so found also where the representation has not lost rank (yet).
    if evidence.training.has_projector is False:
        measured = "The loss acts on the representation itself: there is no projector."
        return Cause("projector", title, True, measured, "missing")
    if embedding is None:
        return Cause("projector", title, None, "The projector is not known.")
    most = min(LOW_RANK[0], LOW_RANK[1] * report.output.dimensions)
    rank = embedding.scalars.get("effective_rank")
    words = "" if rank is None else f", of which the effective rank is {rank:.1f}"
    low = embedding.dimensions < most
    return Cause(
        "projector",
        title,
        low,
        f"The embedding has {embedding.dimensions} dimensions (a cause below {most:g}){words}.",
        "low rank" if low else "",
    )


def _lessened(evidence: Evidence) -> bool:
    ranks = (r.output.scalars.get("effective_rank") for r in (evidence.report, evidence.untrained))
    rank, random_rank = ranks
    return rank is not None and random_rank is not None and rank < LESSENED * random_rank


def _norms(evidence: Evidence, lessened: bool) -> list[Cause]:
    ratios = [r for r in evidence.norm_ratios.values() if math.isfinite(r)]
    high = "the weights have blown up: the learning rate is too high"
    low = "the weights have shrunk: the weight decay is too high"
    if not evidence.norm_ratios:
        none = "The model has no weight to compare."
        return [Cause("weight_decay", low, None, none), Cause("learning_rate", high, None, none)]
    infinite = len(ratios) < len(evidence.norm_ratios)
    dropped = bool(evidence.report.output.scalars.get("dropped"))
    ended = evidence.training.diverged
    diverged = infinite or dropped or bool(ended) or _diverged(evidence.history)
    ratio = median(ratios) if ratios else math.inf
    training = evidence.training
    known = ", ".join(
        f"{name} {value:g}"
        for name, value in (
            ("learning rate", training.learning_rate),
            ("weight decay", training.weight_decay),
        )
        if value is not None
    )
    tail = f" ({training.optimizer or 'optimizer not known'}, {known})" if known else ""
    text = (
        f"The median norm of the weights is {ratio:.2g} times that of random initialisation{tail}"
    )
    return [
        Cause(
            "weight_decay", low, lessened and ratio < SHRUNK, f"{text}; a cause below {SHRUNK:g}."
        ),
        Cause(
            "learning_rate",
            high,
            diverged or (lessened and ratio > GROWN),
            f"{text}; a cause above {GROWN:g}"
            + (", or where values are no longer finite, as here." if diverged else ".")
            + (f" The training ended by itself: {ended}." if ended else ""),
        ),
    ]


def _diverged(history: Sequence[object]) -> bool:
    rows: list[dict[str, float]] = [r for r in history if isinstance(r, dict)]
    return any(
        (name.endswith("/dropped") and value > 0)
        for row in rows[-3:]
        for name, value in row.items()
    )


def _dead_units(evidence: Evidence) -> Cause:
    title = "most units of a layer are dead"
    if not evidence.dead:
        return Cause("dead_units", title, None, "The model has no ReLU that could be watched.")
    name = max(evidence.dead, key=lambda n: evidence.dead[n])
    share = evidence.dead[name]
    return Cause(
        "dead_units",
        title,
        share >= DEAD,
        f"{100 * share:.0f} % of the channels of {name} are zero for every image "
        f"(a cause from {100 * DEAD:.0f} %).",
        name,
    )


def _augmentation(evidence: Evidence, collapsed: bool) -> Cause:
    title = "the views of an image have hardly anything in common"
    views = evidence.views
    if views is None:
        return Cause("augmentation", title, None, "The views of the training are not known.")
    best = views.best
    detail, without, found = "", "", best.matched < UNMATCHED
    stronger = evidence.training.stronger_steps
    if views.left_out:
        detail, without = _step_to_blame(views, stronger or ())
        # Every published step makes views differ; one that no published views have must not.
        share = views.left_out[detail].matched
        if detail in (stronger or ()) and detail not in _PUBLISHED_STEPS and not found:
            found = share >= DROWNED * best.matched
            title = f"{detail} drowns what the views of an image have in common" if found else title
    # Short trainings and small networks cannot match published views of photographs either, and
    # do well with them.
    usual = stronger == () and not collapsed
    if usual and best.matched < UNMATCHED:
        without += " No step is stronger than in the published views of SimCLR and BYOL."
    return Cause(
        "augmentation",
        title,
        found and not usual,
        f"Two views of an image are found together in {100 * best.matched:.0f} % of the cases "
        f"(by chance {100 * best.chance:.1f} %; a cause below {100 * UNMATCHED:.0f} %); "
        f"{100 * views.trained.signal:.0f} % of the features' variance lies between images."
        + without,
        detail,
    )


def _step_to_blame(views: ViewsEvidence, stronger: Sequence[str]) -> tuple[str, str]:
    """The step without which two views agree most, or an unusual one whose loss is enough.

    Enough is what makes views agree that hardly do, or agree by a third more than they do.
    """

    def agreement(name: str) -> float:
        return views.left_out[name].matched

    most = max(views.left_out, key=agreement)
    unusual = max((n for n in stronger if n in views.left_out), key=agreement, default=most)
    enough = max(UNMATCHED, DROWNED * views.best.matched if unusual not in _PUBLISHED_STEPS else 0)
    if unusual == most or agreement(unusual) < enough:
        share = f"{100 * agreement(most):.0f} %"
        return most, f" Without {most} it would be {share}, more than without any other."
    return unusual, (
        f" Without {unusual} it would be {100 * agreement(unusual):.0f} %, without {most} "
        f"{100 * agreement(most):.0f} %, but {unusual} is stronger than in the published views of "
        "SimCLR and BYOL."
    )


def _objective(
    evidence: Evidence, verdict: Verdict, lessened: bool, others: Sequence[Cause]
) -> Cause:
    title = "the objective is met by a constant output"
    method = evidence.training.method
    named = f" of {method}" if method else ""
    missing = evidence.training.disabled
    if missing:
        return Cause(
            "objective",
            title,
            lessened,
            f"The settings{named} switch off: {', '.join(missing)}.",
            ", ".join(missing),
        )
    explained = [c.name for c in others if c.found and c.name != "weights"]
    embedding = next(
        (r for r in evidence.report.layers if r.name.startswith("embedding")),
        evidence.report.output,
    )
    rank = embedding.scalars.get("effective_rank")
    words = "has no spectrum" if rank is None else f"has an effective rank of {rank:.1f}"
    return Cause(
        "objective",
        title,
        verdict.state in ("complete", "dimensional") and not explained,
        f"What the loss acts on {words} of {embedding.dimensions}, and "
        + (
            f"another cause explains it ({', '.join(explained)})."
            if explained
            else f"no other cause was found: look at predictor, stop-gradient, variance term and "
            f"centring{named}."
            if verdict.state != "none"
            else "it has not collapsed."
        ),
    )


def _weights(evidence: Evidence, collapsed: bool) -> Cause:
    title = "weights have lost rank"
    rtol = evidence.report.settings["collapse_rtol"]
    before = {w.name: _weak(w.normalized_eigenvalues, rtol) for w in evidence.untrained.weights}
    lost = {
        w.name: _weak(w.normalized_eigenvalues, rtol) - before.get(w.name, 0.0)
        for w in evidence.report.weights
    }
    if not lost:
        return Cause("weights", title, None, "The model has no weight that was measured.")
    worst = max(lost, key=lambda name: lost[name])
    return Cause(
        "weights",
        title,
        collapsed and lost[worst] >= WEAK_WEIGHTS,
        f"{worst} has lost {100 * lost[worst]:.0f} % of its singular values since its "
        f"initialisation, more than any other weight (a cause from {100 * WEAK_WEIGHTS:.0f} %).",
        worst,
    )


def _weak(eigenvalues: Sequence[float], rtol: float) -> float:
    return sum(e < rtol**2 for e in eigenvalues) / max(len(eigenvalues), 1)


def _samples(verdict: Verdict) -> Cause:
    return Cause(
        "samples",
        "too few images to tell",
        verdict.state == "unclear",
        verdict.sentences[-1] if verdict.state == "unclear" else "There are enough images.",
    )
