"""What became of each run: collapsed or not, by its own rank and accuracy, not by intention."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from tests.benchmarks.collapse_bench.runs import part_of

Label = Literal["collapsed", "healthy", "unclear"]

SHARE = 0.6
"""A rank, or a spread of the embedding, of at most this share of the siblings' has fallen."""
POINTS = 0.03
"""So much less accuracy is harm, where it is more than two standard errors of the difference."""
POINT = 0.05
"""Rows whose uniformity is within this of 0 are one point on the sphere."""
_HELD_OUT = {"digits": 540, "cifar10": 640}


@dataclass(frozen=True)
class Outcome:
    """What became of a run, against its siblings: healthy runs of its method, data and backbone.

    Attributes:
        label: `collapsed` if a rank or spread fell and an accuracy with it, or training diverged;
            `healthy` if neither did and it learned something: its mean accuracy is above that of
            its own random weights; else `unclear`. An embedding whose rows are one point has lost
            its spread whatever the siblings have; a training whose mean accuracy is below that of
            its own random weights has lost accuracy.
        rank: effective rank of the representation over the siblings'.
        embedding: likewise of the embedding, which the loss acts on.
        spread: likewise the embedding's uniformity, which is 0 where all rows are one point.
        linear: accuracy of the linear probe minus the siblings'.
        knn: likewise of kNN.
    """

    label: Label
    rank: float
    embedding: float
    spread: float
    linear: float
    knn: float


def read_runs(output: Path, part: str | None = None) -> list[dict[str, Any]]:
    """The records of the finished runs of a part, by name.

    Raises:
        ValueError: if there is none.
    """
    records = [json.loads(path.read_text()) for path in sorted(output.glob("*/run.json"))]
    records = [r for r in records if part in (None, part_of(r["name"]))]
    if not records:
        raise ValueError(f"{output} must hold finished runs, found none")
    return records


def outcomes(records: Sequence[Mapping[str, Any]]) -> dict[str, Outcome]:
    """What became of each run, by name.

    Siblings are those meant to be healthy whose mean accuracy did not fall below that of their own
    random weights; where a method has none at a place, those of all methods there. So a run that
    was meant to be healthy can turn out to have collapsed.
    """
    return {str(r["name"]): _outcome(r, _siblings(r, records)) for r in records}


def _siblings(
    record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    same = ("data", "backbone")
    place = [r for r in records if all(r[key] == record[key] for key in same) and _sound(r)]
    return [r for r in place if r["method"] == record["method"]] or place


def _sound(record: Mapping[str, Any]) -> bool:
    if record["cause"] or record["diverged"] or record["detail"] == "other width":
        return False
    return not _below_random(record)


def _below_random(record: Mapping[str, Any]) -> bool:
    return _gain(record) <= -1


def _learned(record: Mapping[str, Any]) -> bool:
    return _gain(record) >= 1


def _gain(record: Mapping[str, Any]) -> float:
    """The mean of both accuracies less that of the random weights, over what chance can make."""
    first, last = (_mean(record["checkpoints"][i]) for i in (0, -1))
    return (last - first) / _harm(record, first)


def _mean(checkpoint: Mapping[str, Any]) -> float:
    return float(fmean(checkpoint["accuracy"][name] for name in ("linear", "knn")))


def _harm(record: Mapping[str, Any], accuracy: float) -> float:
    """How much less than an accuracy is more than chance on the held-out images."""
    variance = accuracy * (1 - accuracy) / _HELD_OUT[record["data"]]
    return max(POINTS, 2 * math.sqrt(2 * variance))


def _outcome(record: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> Outcome:
    last = record["checkpoints"][-1] if record["checkpoints"] else {}
    if record["diverged"] or "accuracy" not in last or not siblings:
        return Outcome("unclear" if not siblings else "collapsed", *[math.nan] * 5)
    ends = [s["checkpoints"][-1] for s in siblings]
    rank = _share(rank_of(last), map(rank_of, ends))
    embedding, spread = (
        _share(at_end(record, name), (at_end(s, name) for s in siblings))
        for name in ("effective_rank", "uniformity")
    )
    reference = {name: median(e["accuracy"][name] for e in ends) for name in ("linear", "knn")}
    linear, knn = (last["accuracy"][name] - reference[name] for name in reference)
    fell = any(share <= SHARE for share in (rank, embedding, spread))
    fell |= -at_end(record, "uniformity") <= POINT
    harmed = _below_random(record) or any(
        last["accuracy"][name] - value <= -_harm(record, value) for name, value in reference.items()
    )
    label: Label = "unclear"
    if fell and harmed:
        label = "collapsed"
    elif not fell and not harmed and _learned(record):
        label = "healthy"
    return Outcome(label, rank, embedding, spread, linear, knn)


def _share(value: float, others: Iterable[float]) -> float:
    known = [other for other in others if not math.isnan(other)]
    return value / (median(known) or math.nan) if known else math.nan


def rank_of(checkpoint: Mapping[str, Any]) -> float:
    """Effective rank of the representation; 0 where all rows are equal."""
    return float(checkpoint["scalars"]["effective_rank"] or 0.0)


def head_of(record: Mapping[str, Any]) -> str:
    """The layer whose output the loss acts on."""
    return "student.layers" if record["method"] in ("DINO", "IBOT") else "head"


def at_end(record: Mapping[str, Any], measure: str) -> float:
    """A measure of the embedding at the last reading; 0 of equal rows, NaN where there is none."""
    last = record["readings"][-1] if record["readings"] else {}
    name = f"{head_of(record)}/"
    if not any(key.startswith(name) for key in last):
        return math.nan
    return float(last.get(name + measure) or 0.0)
