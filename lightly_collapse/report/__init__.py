"""Pages and figures that show the collapse."""

from lightly_collapse.report.collapse_report import CollapseReport, LayerRecord, WeightRecord
from lightly_collapse.report.compare import Comparison, compare
from lightly_collapse.report.measure import measure

__all__ = [
    "CollapseReport",
    "Comparison",
    "LayerRecord",
    "WeightRecord",
    "compare",
    "measure",
]
