"""How often the alarm is right, and how early, on the stored curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import binomtest

from lightly_collapse.tracking import CollapseAlarm, CollapseWarning
from tests.benchmarks.collapse_bench.outcomes import POINTS, Outcome

_SMOOTHING = 3


@dataclass(frozen=True)
class AlarmScore:
    """What an alarm did on runs of known outcome.

    Attributes:
        hits: collapsed runs with an alarm.
        missed: collapsed runs without one.
        false: healthy runs with one.
        quiet: healthy runs without one.
        leads: share of its steps by which the first alarm of a collapsed run came before its kNN
            accuracy fell; of those runs whose accuracy fell.
    """

    hits: list[str]
    missed: list[str]
    false: list[str]
    quiet: list[str]
    leads: list[float]

    @property
    def precision(self) -> float:
        """Share of the alarms that were right."""
        return len(self.hits) / max(len(self.hits) + len(self.false), 1)

    @property
    def recall(self) -> float:
        """Share of the collapsed runs that were noticed."""
        return len(self.hits) / max(len(self.hits) + len(self.missed), 1)

    def __str__(self) -> str:
        leads = ", ".join(f"{100 * lead:+.0f}" for lead in sorted(self.leads))
        lead = f"{100 * median(self.leads):+.0f} % ({leads})" if self.leads else "none known"
        alarms, collapsed = len(self.hits) + len(self.false), len(self.hits) + len(self.missed)
        return (
            f"precision {share_of(len(self.hits), alarms)} of the alarms, "
            f"recall {share_of(len(self.hits), collapsed)} of the collapsed runs, "
            f"median lead in percent of the steps {lead}"
        )


def share_of(part: int, whole: int) -> str:
    """A share with its 95 % interval (Clopper and Pearson 1934), as text."""
    if not whole:
        return "none"
    ends = binomtest(part, whole).proportion_ci(method="exact")
    return f"{part / whole:.3f} [{ends.low:.3f}, {ends.high:.3f}], {part} of {whole}"


def score_alarm(
    records: Sequence[Mapping[str, Any]],
    found: Mapping[str, Outcome],
    alarm: Callable[[], CollapseAlarm] = CollapseAlarm,
) -> AlarmScore:
    """Run an alarm over the curves of all runs whose outcome is clear.

    A run whose loss is no longer finite is left out: its training ends itself, with an error.

    Args:
        records: of runs.
        found: their outcomes.
        alarm: makes a fresh alarm.

    Returns:
        What it did.
    """
    score = AlarmScore([], [], [], [], [])
    for record in records:
        name, label = record["name"], found[record["name"]].label
        if label == "unclear" or record["diverged"]:
            continue
        warning = first_warning(record, alarm())
        if label == "healthy":
            (score.quiet if warning is None else score.false).append(name)
            continue
        (score.missed if warning is None else score.hits).append(name)
        fell = knn_falls(record)
        if warning is not None and fell is not None:
            score.leads.append((fell - warning.step) / record["steps"])
    return score


def first_warning(record: Mapping[str, Any], alarm: CollapseAlarm) -> CollapseWarning | None:
    """What an alarm says first of the curve of a run."""
    for row in record["readings"]:
        readings = {
            f"collapse/{name}": math.nan if value is None else value
            for name, value in row.items()
            if name != "step"
        }
        warning = alarm.update(int(row["step"]), readings)
        if warning is not None:
            return warning
    return None


def knn_falls(record: Mapping[str, Any]) -> int | None:
    """The step after which kNN stays below its best so far, by more than `POINTS`.

    Returns:
        The first such step; None where the accuracy never fell for good.
    """
    votes = [0.0 if v is None else v for v in record["knn"]]
    smooth = [median(votes[max(0, i - _SMOOTHING + 1) : i + 1]) for i in range(len(votes))]
    best = [max(smooth[: i + 1]) for i in range(len(smooth))]
    below = [value < top - POINTS for value, top in zip(smooth, best, strict=True)]
    if not below[-1]:
        return None
    start = len(below) - below[::-1].index(False) if False in below else 0
    return int(record["knn_steps"][start])
