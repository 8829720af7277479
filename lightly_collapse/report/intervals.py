"""Intervals of the numbers of a report, from blocks of its rows and from its sample.

Measures of the spectrum: the delete-a-group jackknife (Kott 2001, "The delete-a-group jackknife",
J. Official Statistics 17) over blocks to which rows are assigned by hash, on the logarithm of those
that are positive: pseudo-values correct the bias to first order, and their spread gives the
interval by Student's t, with the degrees of freedom that `freedom` finds. Participation ratio: the
same of an estimate that has no bias, see
`EmbeddingSketch.corrected_participation_ratio`. mLID and TwoNN: about the value corrected for few
neighbours or rows, from balanced half-samples (McCarthy 1969, "Pseudo-replication: half samples",
Rev. Int. Statistical Institute 37), each with neighbours among its own rows. Rows share neighbours,
so that with fixed ones the interval would be too short, of mLID by up to 40 % in a simulation, and
by a jackknife, which counts interactions of rows twice, too long, by 15 to 60 %; the two halves of
a split share nothing. Uniformity: over blocks of rows left out of all pairs.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean
from typing import NamedTuple

import torch
from scipy.linalg import hadamard
from scipy.special import stdtrit
from torch import Tensor

from lightly_collapse.functional.intrinsic_dimension import (
    geometric_mean,
    lid_mom_from_distances,
    mlid_corrected,
)
from lightly_collapse.functional.neighbors import nearest_neighbors
from lightly_collapse.functional.two_nn import two_nn_of_distances
from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.report.freedom import degrees_of_freedom, excess_kurtosis

_CONFIDENCE = 0.95
_PARTS = 20
_BALANCED = torch.from_numpy(hadamard(32)[1:] > 0)  # 31 splits of 32 parts, any two independent
_ROWS_A_DIMENSION = 8
_FEWEST_ROWS = 40  # two a block
_GAP = 1.5  # of an eigenvalue to the next
_NEAR_FULL = 0.97  # of the dimensions
_LOGARITHMIC = (
    "rankme",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "nesum",
    "condition_number",
)
LOGARITHMIC = (*_LOGARITHMIC, "mlid", "two_nn")
"""Measures whose intervals are those of their logarithms."""
_COUNTS = ("collapsed_dimensions",)
_PLAIN = ("alpha_req",)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    def middle(self, logarithmic: bool) -> float:
        """The value that it is an interval about: its mean, or that of the ends' logarithms."""
        if logarithmic:
            return math.sqrt(self.low) * math.sqrt(self.high)
        return (self.low + self.high) / 2


def jackknife_interval(
    value: float,
    left_out: Sequence[float],
    logarithmic: bool = False,
    freedom: float | None = None,
) -> Interval | None:
    """The interval of a measure from its values without each of several blocks of equal size.

    Args:
        value: the measure of all rows.
        left_out: of all rows but one block's, for every block.
        logarithmic: work with logarithms, for a measure that is positive.
        freedom: degrees of freedom of the spread of the blocks; one less than the blocks by
            default.

    Returns:
        The interval, about the value corrected for its bias; None where a value is not finite or
        there are fewer than two blocks.

    Examples:
        >>> low, high = jackknife_interval(2.0, [1.9, 2.0, 2.1, 2.0])
        >>> f"{low:.2f} to {high:.2f}"
        '1.61 to 2.39'
    """
    values = [value, *left_out]
    n = len(left_out)
    if n < 2 or not all(map(math.isfinite, values)) or (logarithmic and min(values) <= 0):
        return None
    if logarithmic:
        values = [math.log(v) for v in values]
    mean = sum(values[1:]) / n
    center = n * values[0] - (n - 1) * mean
    error = math.sqrt((n - 1) / n * sum((v - mean) ** 2 for v in values[1:]))
    half = float(stdtrit(freedom or n - 1, 0.5 + _CONFIDENCE / 2)) * error
    low, high = center - half, center + half
    return Interval(math.exp(low), math.exp(high)) if logarithmic else Interval(low, high)


def estimates_of(
    sketch: EmbeddingSketch, scalars: dict[str, float], independent: float | None = None
) -> tuple[dict[str, Interval], dict[str, float]]:
    """The 95 % intervals of the numbers of a reading, and the numbers corrected for few rows.

    Args:
        sketch: of the rows, of two blocks or more for those of the spectrum.
        scalars: the values, as `sketch.compute` gave them.
        independent: how many of the rows are independent; all by default.

    Returns:
        Both by name; without those that cannot be computed, and without an interval of
        `collapsed_dimensions` that leaves the count out. The corrected number is the middle of its
        interval.
    """
    left_out = sketch.leave_one_out()
    whole = scalars | {"participation_ratio": sketch.corrected_participation_ratio()}
    n = len(left_out)
    freedom = {
        name: degrees_of_freedom(
            n, (scalars["rows"] if independent is None else independent) / n, excess
        )
        for name, excess in (excess_kurtosis(sketch.sample) if n > 1 else {}).items()
    }
    found: dict[str, Interval | None] = {}
    for name in (*_LOGARITHMIC, *_PLAIN, *_COUNTS):
        values = [v[name] for v in left_out]
        logarithmic = name in _LOGARITHMIC
        found[name] = jackknife_interval(whole[name], values, logarithmic, freedom.get(name))
        interval = found[name]
        if interval is not None and name in _COUNTS:
            # With fewer rows than dimensions the count grows with the rows, which the correction
            # takes for a bias: the interval lies elsewhere, even beyond the dimensions.
            low, high = math.floor(interval.low), math.ceil(interval.high)
            inside = low <= whole[name] <= high
            found[name] = Interval(max(low, 0), min(high, sketch.dimensions)) if inside else None
    if all(math.isfinite(scalars[n]) for n in ("mlid", "two_nn")):
        found |= _of_neighbors(sketch)
    if math.isfinite(scalars["uniformity"]):
        found["uniformity"] = _of_uniformity(sketch.sample, scalars["uniformity"])
    intervals = {name: interval for name, interval in found.items() if interval is not None}
    corrected = {name: i.middle(name in LOGARITHMIC) for name, i in intervals.items()}
    # No correction of a count is known, and uniformity has no bias: its pairs are a U-statistic.
    return intervals, {n: v for n, v in corrected.items() if n not in (*_COUNTS, "uniformity")}


def unreliable(
    rows: int, spectrum: Sequence[float], effective_rank: float | None
) -> dict[str, str]:
    """Measures whose intervals are not to be relied on, and why.

    The rules are those of the simulation in `tests/report/test_coverage.py`: flat spectra, power
    laws and spikes, Gaussian and heavy-tailed rows, 0.25 to 16 rows a dimension.

    Args:
        rows: number of rows.
        spectrum: singular values of the centred rows, in descending order.
        effective_rank: of the rows.

    Returns:
        Reason by name: to follow "their 95 % intervals are not to be relied on:".
    """
    s, d = spectrum, len(spectrum)
    if rows < _FEWEST_ROWS:
        every = (*LOGARITHMIC, *_PLAIN, *_COUNTS, "uniformity")
        return dict.fromkeys(every, f"there are fewer than {_FEWEST_ROWS} rows")
    found: dict[str, str] = {}
    if rows < _ROWS_A_DIMENSION * d:
        few = f"there are fewer than {_ROWS_A_DIMENSION} rows a dimension"
        found |= dict.fromkeys(
            ("rankme", "effective_rank", "alpha_req", "collapsed_dimensions"), few
        )
        unsure = f"{few}: they hold the true value in 84 to 100 % of the cases, not 95"
        found |= dict.fromkeys(("participation_ratio", "stable_rank", "nesum"), unsure)
    elif effective_rank is not None and effective_rank > _NEAR_FULL * d:
        wide = "near the largest possible value they are wider than needed"
        found |= dict.fromkeys(
            ("rankme", "effective_rank", "participation_ratio", "uniformity"), wide
        )
    if d > 1 and s[0] ** 2 < _GAP * s[1] ** 2:
        close = "the largest eigenvalue does not stand apart from the next"
        found |= dict.fromkeys(("stable_rank", "nesum", "condition_number"), close)
    if d > 1 and s[-2] ** 2 < _GAP * s[-1] ** 2:
        found["condition_number"] = "the smallest eigenvalue does not stand apart from the next"
    if d > 1 and s[d // 2] ** 2 < _spread_of_equals(d / rows) * s[-1] ** 2:
        found["alpha_req"] = "the eigenvalues of the lower half may be equal and differ by chance"
    return found


def _spread_of_equals(share: float) -> float:
    """Largest over smallest sample eigenvalue where all are equal (Marchenko and Pastur 1967)."""
    root = min(share, 1.0) ** 0.5
    return math.inf if root == 1 else ((1 + root) / (1 - root)) ** 2


def told_apart(name: str, one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the 95 % interval of the difference of two measures leaves zero out.

    Args:
        name: of the measure; the difference of positive ones is that of their logarithms.
        one: lower and upper end of the interval of one.
        other: of the other, from other rows. Of the same rows the two vary together, and the
            difference is known better than this says.
    """
    ends = [*one, *other]
    if name in LOGARITHMIC and min(ends) > 0:
        ends = [math.log(v) for v in ends]
    a, b, c, d = ends
    return abs((a + b) - (c + d)) > math.hypot(b - a, d - c)


def half_sample_interval(value: float, halves: Sequence[tuple[float, float]]) -> Interval | None:
    """The interval of a positive measure from its values in both halves of balanced splits.

    The logarithms of independent halves of n / 2 rows differ with twice the variance of one, which
    is about twice that of all n rows: the mean of (a - b)^2 / 4 over the splits. Where the measure
    is a mean of rows and the splits are balanced, this is the variance between the parts that they
    are made of, of so many degrees of freedom as there are splits.

    Args:
        value: the measure of all rows.
        halves: of both halves of every split.

    Returns:
        The interval about the value; None where a value is not positive and finite.
    """
    values = [value, *(v for pair in halves for v in pair)]
    if not all(0 < v < math.inf for v in values):
        return None
    variance = fmean((math.log(a) - math.log(b)) ** 2 / 4 for a, b in halves)
    half = float(stdtrit(len(halves), 0.5 + _CONFIDENCE / 2)) * math.sqrt(variance)
    return Interval(value * math.exp(-half), value * math.exp(half))


def _of_neighbors(sketch: EmbeddingSketch) -> dict[str, Interval | None]:
    x = sketch.sample
    k = min(sketch.lid_k, len(x) - 1)
    distances, rows = sketch.neighbors(k)

    def nearest(kept: Tensor) -> Tensor:
        """Distances of some rows to their nearest among themselves: k of them, or all there are."""
        count = min(k, int(kept.sum()) - 1)
        there = kept[rows[kept]]
        rank = there.cumsum(dim=1)
        few = rank[:, -1] < count
        found = distances.new_empty(len(there), count)
        found[~few] = distances[kept][~few][(there & (rank <= count))[~few]].view(-1, count)
        if few.any():  # the spare neighbours do not suffice
            own = few.nonzero().squeeze(1)
            z = x[kept]
            found[own] = nearest_neighbors(z[own], z, count, exclude=own)[0].to(found.dtype)
        return found

    def mlid(r: Tensor) -> float:
        return mlid_corrected(float(geometric_mean(lid_mom_from_distances(r[:, :k]))), k)

    def two_nn(r: Tensor) -> float:
        return float(two_nn_of_distances(r[:, :2], corrected=True))

    # Rows of the sample come by ascending draw: any pattern of positions is a random one.
    part = torch.arange(len(x)) % len(_BALANCED[0])
    splits = [half[part] for half in _BALANCED]
    least = min(int(half.sum()) for split in splits for half in (split, ~split))
    found: dict[str, Interval | None] = {}
    if least <= 2:
        return found
    halves = [(nearest(split), nearest(~split)) for split in splits]
    # Among few rows all may have their two nearest at one distance.
    with suppress(ValueError):
        values = [(two_nn(a), two_nn(b)) for a, b in halves]
        found["two_nn"] = half_sample_interval(two_nn(distances), values)
    if k < least:  # else a row of a half has not k others
        values = [(mlid(a), mlid(b)) for a, b in halves]
        found["mlid"] = half_sample_interval(mlid(distances), values)
    return found


def _of_uniformity(x: Tensor, value: float, t: float = 2.0) -> Interval | None:
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    part = torch.arange(len(x)) % _PARTS
    one_hot = torch.nn.functional.one_hot(part, _PARTS).double()
    sums = one_hot.new_zeros(_PARTS, _PARTS)
    for rows, mine in zip(torch.split(unit, 512), torch.split(one_hot, 512), strict=True):
        kernel = (2 * t * (rows @ unit.T - 1)).exp()
        sums += mine.T @ (kernel @ one_hot)
    sums -= torch.diag(one_hot.sum(dim=0))  # a row with itself
    counts = one_hot.sum(dim=0)
    values = []
    for i in range(_PARTS):
        left = sums.sum() - 2 * sums[i].sum() + sums[i, i]
        n = counts.sum() - counts[i]
        values.append(float((left / (n * (n - 1))).log()))
    return jackknife_interval(value, values)
