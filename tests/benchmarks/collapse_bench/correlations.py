"""How measures rank checkpoints: Spearman correlation with the accuracy of a linear probe."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

MEASURES = (
    "rankme",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "nesum",
    "alpha_req",
    "collapsed_dimensions",
    "condition_number",
    "mlid",
    "two_nn",
    "uniformity",
)
_RESAMPLES = 1000
_LEAST = 4


def correlations(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, ...]]]:
    """The mean correlation over groups of checkpoints, with a 95 % interval by bootstrap of groups.

    Args:
        records: of runs.

    Returns:
        By `within a run` (its checkpoints but that of random weights), `across settings` (last
        checkpoints of one method, data and backbone) and `across methods` (of one data and
        backbone), by measure: mean, lower and upper end, number of groups.
    """
    ends = [r for r in records if r["checkpoints"] and "scalars" in r["checkpoints"][-1]]
    last = [(r, r["checkpoints"][-1]) for r in ends]
    groups = {
        "within a run": [[c for c in r["checkpoints"][1:] if "scalars" in c] for r in records],
        "across settings": _grouped(last, lambda r: (r["method"], r["data"], r["backbone"])),
        "across methods": _grouped(last, lambda r: (r["data"], r["backbone"])),
    }
    return {
        name: {measure: _mean(found, measure) for measure in MEASURES}
        for name, found in groups.items()
    }


def _grouped(
    ends: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    key: Callable[[Mapping[str, Any]], tuple[str, ...]],
) -> list[list[Mapping[str, Any]]]:
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record, checkpoint in ends:
        found.setdefault(key(record), []).append(checkpoint)
    return list(found.values())


def _mean(groups: Sequence[Sequence[Mapping[str, Any]]], measure: str) -> tuple[float, ...]:
    values = [r for group in groups if not math.isnan(r := _spearman(group, measure))]
    if not values:
        return (math.nan, math.nan, math.nan, 0)
    generator = np.random.default_rng(0)
    drawn = generator.choice(values, (_RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return (float(np.mean(values)), float(low), float(high), len(values))


def _spearman(group: Sequence[Mapping[str, Any]], measure: str) -> float:
    known = [
        (c["scalars"][measure], c["accuracy"]["linear"])
        for c in group
        if c["scalars"].get(measure) is not None
    ]
    x, y = zip(*known, strict=True) if known else ((), ())
    if len(known) < _LEAST or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)
