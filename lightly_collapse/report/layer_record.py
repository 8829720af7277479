"""The record of a layer from the sketch of its rows."""

import math

from lightly_collapse.metrics import EmbeddingSketch, NeighborDistances
from lightly_collapse.report.intervals import estimates_of, unreliable
from lightly_collapse.report.records import LayerRecord, finite, rounded


def record_of(
    name: str, sketch: EmbeddingSketch, near: NeighborDistances | None = None
) -> LayerRecord:
    """What a report says of a layer or a group.

    Args:
        name: of the layer.
        sketch: of its rows.
        near: distances of the sampled rows to the nearest of all, where those were sought.

    Returns:
        The record.
    """
    reading = sketch.compute()
    scalars, problems, lid = dict(reading.scalars), dict(reading.problems), reading.lid
    intervals, corrected = estimates_of(sketch, scalars)
    if near is not None:
        lid = near.lid()
        scalars["mlid"], scalars["lid_rows"] = near.mlid(), float(len(lid))
        for known in (problems, intervals, corrected):
            known.pop("mlid", None)
    if math.isinf(scalars["condition_number"]):
        problems["condition_number"] = "infinite, the weakest direction cannot be told from zero"
    spectrum = [] if reading.spectrum is None else list(map(rounded, reading.spectrum.tolist()))
    doubtful = unreliable(sketch.rows, spectrum, corrected.get("effective_rank"))
    return LayerRecord(
        name=name,
        dimensions=sketch.dimensions,
        scalars=finite(scalars),
        problems=problems,
        spectrum=spectrum,
        lid=[] if lid is None else list(map(rounded, lid.tolist())),
        intervals={n: [rounded(i.low), rounded(i.high)] for n, i in intervals.items()},
        corrected={n: rounded(v) for n, v in corrected.items()},
        doubtful={n: why for n, why in doubtful.items() if n in intervals},
    )
