"""How good the choice of `lightly_collapse.report.select` is, and the fit of its weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from lightly_collapse.report.intervals import unreliable
from lightly_collapse.report.records import LayerRecord, ModelRecord
from lightly_collapse.report.select import Selection, collapsed, features, select

MEASURES = ("effective_rank", "mlid")
HALF_WIDTHS = {"effective_rank": 0.016, "participation_ratio": 0.056, "mlid": 0.033}
"""Of the 95 % intervals of the logarithms: medians over the last checkpoints of 54 trainings on
digits. The bench's own reports have no intervals."""
_LEAST = 2


@dataclass(frozen=True)
class Group:
    """Checkpoints to choose from, of one training or not; linear accuracy in points by name."""

    method: str
    one_run: bool
    reports: tuple[ModelRecord, ...]
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """What came of a group.

    Attributes:
        selection: the answer.
        regret: points of linear accuracy that the chosen lacks to the best; NaN without an answer.
        first: those that the first of the ranking lacks, answer or not; NaN without a ranking.
        last: those that the last report of the group lacks.
        chance: those that a random one lacks on average.
        excluded: those that each report lacks that is excluded as collapsed.
    """

    selection: Selection
    regret: float
    first: float
    last: float
    chance: float
    excluded: tuple[float, ...]


def groups(output: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, list[Group]]:
    """Checkpoints of one training but the first, of random weights; and the last ones of the
    trainings of one method, data and backbone."""
    within = [_group(output, [(r, c) for c in _measured(output, r)[1:]], True) for r in records]
    ends: dict[tuple[str, ...], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for r in records:
        measured = _measured(output, r)
        if measured and measured[-1]["step"] == r["steps"] and not r["diverged"]:
            key = (r["method"], r["data"], r["backbone"])
            ends.setdefault(key, []).append((r, measured[-1]))
    found = {
        "within a run": within,
        "across settings": [_group(output, e, False) for e in ends.values()],
    }
    return {k: [g for g in v if len(g.reports) >= _LEAST] for k, v in found.items()}


def _measured(output: Path, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that have a report; folders of the bench may have been copied without some."""
    known = [c for c in record["checkpoints"] if "scalars" in c]
    return [c for c in known if (output / record["name"] / c["report"]).is_file()]


def _group(
    output: Path,
    checkpoints: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    one_run: bool,
) -> Group:
    reports, accuracy = [], {}
    for record, checkpoint in checkpoints:
        loaded = ModelRecord.load(output / record["name"] / checkpoint["report"])
        source = {
            "model": record["backbone"],
            "objective": record["method"],
            "data": record["data"],
        }
        reports.append(replace(loaded, source=source, layers=[_with_intervals(loaded.output)]))
        accuracy[loaded.name] = 100 * checkpoint["accuracy"]["linear"]
    return Group(
        checkpoints[0][0]["method"] if checkpoints else "", one_run, tuple(reports), accuracy
    )


def _with_intervals(layer: LayerRecord) -> LayerRecord:
    """With intervals of the usual width, and what the rules of `measure` say about them."""
    if layer.intervals:
        return layer
    intervals = {}
    for name, half in HALF_WIDTHS.items():
        value = layer.scalars.get(name)
        if value is not None:
            intervals[name] = [value * math.exp(-half), value * math.exp(half)]
    rows, rank = int(layer.scalars["rows"] or 0), layer.scalars.get("effective_rank")
    return replace(layer, intervals=intervals, doubtful=unreliable(rows, layer.spectrum, rank))


def fit(found: Sequence[Group]) -> dict[str, float]:
    """Points of accuracy for each unit of log(effective rank / mLID), by least squares.

    Both are taken from the mean of their group; of groups of several trainings, each counts the
    same. Collapsed reports and those of which a measure is not known are left out.
    """
    square, product = [], []
    for group in (g for g in found if not g.one_run):
        gone = collapsed({report.name: report.output for report in group.reports})
        rows = [
            (rank - mlid, group.accuracy[report.name])
            for report in group.reports
            if report.name not in gone and (known := features(report.output, MEASURES)) is not None
            for rank, mlid in (known,)
        ]
        if len(rows) < _LEAST:
            continue
        x, y = (np.array(column) - np.mean(column) for column in zip(*rows, strict=True))
        square.append(np.mean(x * x))
        product.append(np.mean(x * y))
    points = float(np.sum(product) / np.sum(square))
    return {"effective_rank": points, "mlid": -points}


def choices(
    found: Mapping[str, Sequence[Group]], weights: Callable[[str], Mapping[str, float]]
) -> dict[str, list[Choice]]:
    """What `select` chooses.

    Args:
        found: the groups by kind.
        weights: of the rule, by method.
    """
    return {k: [_choice(g, weights(g.method)) for g in v] for k, v in found.items()}


def left_out(found: Mapping[str, Sequence[Group]]) -> dict[str, dict[str, float]]:
    """For each method the weights fitted on the others."""
    every = [group for kind in found.values() for group in kind]
    return {m: fit([g for g in every if g.method != m]) for m in {g.method for g in every}}


def _choice(group: Group, weights: Mapping[str, float]) -> Choice:
    selection = select(group.reports, weights, group.one_run)
    best = max(group.accuracy.values())
    lack = {name: best - value for name, value in group.accuracy.items()}
    return Choice(
        selection,
        lack[selection.chosen] if selection.chosen else math.nan,
        lack[selection.ranking[0].name] if selection.ranking else math.nan,
        lack[group.reports[-1].name],
        mean(lack.values()),
        tuple(lack[name] for name in selection.excluded),
    )


def lines(found: Mapping[str, Sequence[Choice]]) -> list[str]:
    """A line of text for each kind of group."""
    text = []
    for kind, made in found.items():
        answered = [c for c in made if c.selection.chosen]
        regrets = [c.regret for c in answered]
        first = [c.first for c in made if not math.isnan(c.first)]
        text.append(
            f"{kind}: {len(made)} groups, abstains {1 - len(answered) / len(made):.0%}; regret "
            f"{_of(regrets)}; of the first of the ranking without abstaining {_of(first)}; of the "
            f"last report {_of([c.last for c in made])}, of a random one "
            f"{_of([c.chance for c in made])}; where it answers, of the last "
            f"{_of([c.last for c in answered])}, of a random one "
            f"{_of([c.chance for c in answered])}; excluded lack "
            f"{_of([v for c in made for v in c.excluded])}"
        )
    return text


def _of(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return f"median {median(values):.2f} mean {mean(values):.2f} ({len(values)})"
