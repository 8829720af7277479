"""Pages and figures that show the collapse."""

from lightly_collapse.report.compare import Comparison, compare
from lightly_collapse.report.measure import measure
from lightly_collapse.report.records import CollapseReport, LayerRecord, WeightRecord

__all__ = [
    "CollapseReport",
    "Comparison",
    "LayerRecord",
    "WeightRecord",
    "compare",
    "measure",
]
