"""How often the 95 % intervals hold the true value, on spectra that are known.

    python -m pytest tests/report/test_coverage.py -m slow -s

prints the share of intervals that hold the value of the distribution, for each measure, spectrum,
distribution and number of rows a dimension; in brackets where the report itself says that the
interval is not to be relied on, in more than half of the repetitions. mLID, TwoNN and uniformity
have no such value in closed form: theirs is the mean over the repetitions, at this number of rows.
"""

import math
import os

import pytest
import torch

from lightly_collapse import functional
from lightly_collapse.functional.spectrum import rankme_of_spectrum
from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.report.intervals import estimates_of, unreliable

WIDTH = 64
REPEATS = int(os.environ.get("COVERAGE_REPEATS", "100"))
INDEX = torch.arange(1, WIDTH + 1, dtype=torch.float64)
SPECTRA = {
    "flat": torch.ones(WIDTH, dtype=torch.float64),
    "power law": INDEX**-0.5,
    "spiked": torch.where(INDEX <= 4, 7.0 - INDEX, 1.0),
}
MEASURES = {
    "rankme": rankme_of_spectrum,
    "effective_rank": functional.effective_rank,
    "participation_ratio": functional.participation_ratio,
    "stable_rank": functional.stable_rank,
    "nesum": functional.nesum,
    "alpha_req": functional.alpha_req,
}


SAMPLED = ("mlid", "two_nn", "uniformity")


def rows(kind, n, s, g):
    z = torch.randn(n, WIDTH, generator=g, dtype=torch.float64)
    if kind == "heavy":  # t with five degrees of freedom, of variance one
        chi = torch.randn(5, n, WIDTH, generator=g, dtype=torch.float64).square().sum(dim=0)
        z = z * (3 / chi).sqrt()
    return z * s


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("share", [0.25, 1.0, 4.0, 8.0, 16.0])
def test_intervals_hold_or_say_that_they_do_not(spectrum, kind, share):
    s, n = SPECTRA[spectrum], round(share * WIDTH)
    found = {name: [] for name in (*MEASURES, *SAMPLED)}
    doubts = dict.fromkeys(found, 0)
    values = {name: [] for name in SAMPLED}
    g = torch.Generator().manual_seed(0)
    for _ in range(REPEATS):
        sketch = EmbeddingSketch(blocks=20)
        sketch.update(rows(kind, n, s, g))
        scalars = sketch.compute().scalars
        intervals, corrected = estimates_of(sketch, scalars)
        doubtful = unreliable(n, sketch.spectrum().tolist(), corrected.get("effective_rank"))
        for name, ends in found.items():
            ends.append(intervals.get(name, (math.nan, math.nan)))
            doubts[name] += name in doubtful
        for name in SAMPLED:
            values[name].append(corrected.get(name, scalars[name]))
    truth = {name: float(measure(s)) for name, measure in MEASURES.items()}
    truth |= {name: sum(known) / len(known) for name, known in values.items()}
    hits = {name: sum(a <= truth[name] <= b for a, b in ends) for name, ends in found.items()}
    shown = []
    for name, count in hits.items():
        covered, doubted = count / REPEATS, doubts[name] > REPEATS / 2
        shown.append(f"{name} {'(' if doubted else ''}{100 * covered:.0f}{')' if doubted else ''}")
    print(f"\n{spectrum}, {kind}, {share:g} rows a dimension: {', '.join(shown)}", flush=True)
    for name, count in hits.items():
        if doubts[name] == 0 and not math.isnan(truth[name]):
            # 95 % less four standard deviations of so many repetitions.
            assert count / REPEATS >= 0.95 - 4 * (0.05 * 0.95 / REPEATS) ** 0.5, name


def test_participation_ratio_has_no_bias_with_few_rows():
    """A quarter of a row a dimension: the plain ratio is 13 of 64, that of parts 64 on average."""
    g = torch.Generator().manual_seed(0)
    s = SPECTRA["flat"]
    plain, inverse = [], []
    for _ in range(30):
        sketch = EmbeddingSketch(blocks=8)
        sketch.update(rows("gaussian", 48, s, g))
        plain.append(float(functional.participation_ratio(sketch.spectrum())))
        inverse.append(1 / sketch.corrected_participation_ratio())
    assert max(plain) < 32
    mean = sum(inverse) / len(inverse)
    error = (sum((v - mean) ** 2 for v in inverse) / len(inverse) / (len(inverse) - 1)) ** 0.5
    assert mean == pytest.approx(1 / WIDTH, abs=4 * error)
