"""The record of a layer from the sketch of its rows."""

import math

from lightly_collapse.metrics import EmbeddingSketch, NeighborDistances, Reading
from lightly_collapse.report.intervals import estimates_of, unreliable
from lightly_collapse.report.records import LayerRecord, finite, rounded


def record_of(
    name: str,
    reading: Reading,
    dimensions: int,
    sketch: EmbeddingSketch,
    near: NeighborDistances | None = None,
    independent: int | None = None,
) -> LayerRecord:
    """What a report says of a layer or a group.

    Args:
        name: of the layer.
        reading: of its rows.
        dimensions: of its rows.
        sketch: of the same rows, for intervals and corrections.
        near: distances of the sampled rows to the nearest of all, where those were sought.
        independent: number of images, where each may have given several rows; by default every row
            is independent of the others. The neighbours and pairs of rows of few images are not,
            and no interval is known of what is measured on them.

    Returns:
        The record.
    """
    scalars, problems, lid = dict(reading.scalars), dict(reading.problems), reading.lid
    rows = int(scalars["rows"])
    independent = rows if independent is None else min(rows, independent)
    intervals, corrected = estimates_of(sketch, scalars, independent)
    if independent < rows:
        for measure in ("mlid", "two_nn", "uniformity"):
            intervals.pop(measure, None)
            corrected.pop(measure, None)
    if near is not None:
        lid = near.lid()
        scalars["mlid"], scalars["lid_rows"] = near.mlid(), float(len(lid))
        problems.pop("mlid", None)
        intervals.pop("mlid", None)
        corrected.pop("mlid", None)
    if math.isinf(scalars["condition_number"]):
        problems["condition_number"] = "infinite, the weakest direction cannot be told from zero"
    spectrum = [] if reading.spectrum is None else list(map(rounded, reading.spectrum.tolist()))
    doubtful = unreliable(independent, spectrum, corrected.get("effective_rank"))
    return LayerRecord(
        name=name,
        dimensions=dimensions,
        scalars=finite(scalars),
        problems=problems,
        spectrum=spectrum,
        lid=[] if lid is None else list(map(rounded, lid.tolist())),
        intervals={n: [rounded(i.low), rounded(i.high)] for n, i in intervals.items()},
        corrected={n: rounded(v) for n, v in corrected.items()},
        doubtful={n: why for n, why in doubtful.items() if n in intervals},
    )
