"""Measure the collapse of models, compare and predict it: computations, records and pages."""

from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.compare import Comparison, compare
from lightly_collapse.report.diagnosis import Diagnosis, diagnose
from lightly_collapse.report.embeddings import measure_embeddings
from lightly_collapse.report.layer_similarity import layer_similarity
from lightly_collapse.report.measure import measure
from lightly_collapse.report.records import LayerRecord, WeightRecord
from lightly_collapse.report.select import Candidate, Selection, select
from lightly_collapse.report.similarity_record import LayerSimilarity

__all__ = [
    "Candidate",
    "CollapseReport",
    "Comparison",
    "Diagnosis",
    "LayerRecord",
    "LayerSimilarity",
    "Selection",
    "WeightRecord",
    "compare",
    "diagnose",
    "layer_similarity",
    "measure",
    "measure_embeddings",
    "select",
]
