"""From symptom to remedy: whether a model is collapsed, where, why, and what to change."""

from lightly_collapse.report.diagnosis.causes import Cause
from lightly_collapse.report.diagnosis.conclusion import Diagnosis, conclude
from lightly_collapse.report.diagnosis.diagnose import diagnose
from lightly_collapse.report.diagnosis.evidence import Agreement, Evidence, Training, ViewsEvidence
from lightly_collapse.report.diagnosis.records import Trial
from lightly_collapse.report.diagnosis.remedies import Remedy
from lightly_collapse.report.diagnosis.verdict import Place, Verdict

__all__ = [
    "Agreement",
    "Cause",
    "Diagnosis",
    "Evidence",
    "Place",
    "Remedy",
    "Training",
    "Trial",
    "Verdict",
    "ViewsEvidence",
    "conclude",
    "diagnose",
]
