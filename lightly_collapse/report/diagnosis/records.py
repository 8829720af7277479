"""What a diagnosis says: as data, as a file, in sentences."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from typing_extensions import Self

from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.diagnosis.causes import Cause
from lightly_collapse.report.diagnosis.evidence import Evidence
from lightly_collapse.report.diagnosis.remedies import Remedy
from lightly_collapse.report.diagnosis.verdict import Place, Verdict
from lightly_collapse.report.records import finite_json

_Path = str | os.PathLike[str]
_FORMAT = "lightly-collapse diagnosis 1"
NOTHING = "Nothing to mend: the representation has not collapsed, and no cause was found."


@dataclass(frozen=True)
class Trial:
    """What a remedy did in a short training from the checkpoint.

    Attributes:
        text: the remedy; `as it is` for none.
        steps: optimizer steps.
        effective_rank: of the held-out representation after them; None where it diverged.
        variation: of it, about its mean, over its mean square.
        first_loss: mean objective of the first steps, without regularizers' weights changed.
        last_loss: of the last steps.
        problem: why there are no numbers.
    """

    text: str
    steps: int
    effective_rank: float | None = None
    variation: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class DiagnosisRecord:
    """What a diagnosis says, without the means to draw it; see `Diagnosis`.

    Attributes:
        name: of the model.
        verdict: whether.
        place: where.
        causes: why: every cause with its measurement, those that were found first.
        remedies: what to change, the first first.
        evidence: everything that was measured.
        trials: of the remedies, where they were made.
        notes: what could not be measured, and why.
        source: what was diagnosed.
    """

    name: str
    verdict: Verdict
    place: Place
    causes: Sequence[Cause]
    remedies: Sequence[Remedy]
    evidence: Evidence
    trials: Sequence[Trial] = ()
    notes: Sequence[str] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cause(self) -> Cause | None:
        """The first cause that was found; None where there is none."""
        return next((cause for cause in self.causes if cause.found), None)

    def with_trials(self, trials: Sequence[Trial]) -> Self:
        """The same with trials, and the remedies by what they did."""
        order = {t.text: (t.effective_rank or 0.0) for t in trials}
        tried = [r for r in self.remedies if r.text in order]
        others = [r for r in self.remedies if r.text not in order]
        tried.sort(key=lambda r: -order[r.text])
        return replace(self, trials=trials, remedies=[*tried, *others])

    def lines(self) -> list[str]:
        """The four answers in sentences."""
        states = {
            "none": "not collapsed",
            "dimensional": "dimensional collapse",
            "complete": "complete collapse",
            "unclear": "cannot be told",
        }
        lines = [f"Is it collapsed? {states[self.verdict.state].capitalize()}."]
        lines += self.verdict.sentences
        if self.cause is None:
            if self.verdict.state == "none":
                return [*lines, NOTHING]
            return [*lines, f"Where? {self.place.sentence}", "Why? No cause was found."]
        lines.append(f"Where? {self.place.sentence}")
        found = [cause for cause in self.causes if cause.found]
        lines += [f"Why? {cause.title.capitalize()}. {cause.measured}" for cause in found]
        lines += [f"What to change? {remedy.text}" for remedy in self.remedies]
        return lines

    def save(self, path: _Path) -> None:
        """Write the diagnosis as JSON, atomically.

        Raises:
            OSError: if it cannot be written.
        """
        record = finite_json({"format": _FORMAT, **asdict(self)})
        atomic_write(path, json.dumps(record, indent=1, allow_nan=False).encode())
