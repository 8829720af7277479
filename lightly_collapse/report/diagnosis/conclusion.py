"""The diagnosis that evidence allows, and its page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.diagnosis.causes import find_causes
from lightly_collapse.report.diagnosis.evidence import Evidence
from lightly_collapse.report.diagnosis.records import DiagnosisRecord
from lightly_collapse.report.diagnosis.remedies import find_remedies
from lightly_collapse.report.diagnosis.verdict import judge, locate
from lightly_collapse.report.pages.diagnosis import diagnosis_page


@dataclass(frozen=True)
class Diagnosis(DiagnosisRecord):
    """Whether a model is collapsed, where, why, and what to change; made by `diagnose`.

    Its attributes are those of `DiagnosisRecord`, which reads it back without the means to draw.
    """

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained page.

        Args:
            path: the file.

        Raises:
            OSError: if it cannot be written.
        """
        atomic_write(path, diagnosis_page(self).encode())


def conclude(
    evidence: Evidence,
    name: str,
    steps: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """The diagnosis that evidence allows.

    Args:
        evidence: what was measured.
        name: of the model.
        steps: settings that switch an augmentation off, by its name.
        notes: what a reader must know.
        source: what was diagnosed.
    """
    verdict = judge(evidence)
    causes = find_causes(evidence, verdict)
    return Diagnosis(
        name=name,
        verdict=verdict,
        place=locate(evidence),
        causes=causes,
        remedies=find_remedies(causes, evidence.training, steps or {}),
        evidence=evidence,
        notes=[*notes, *evidence.problems],
        source=source or {},
    )
