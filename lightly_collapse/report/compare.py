"""Several reports side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from lightly_collapse._combinations import check_compare
from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.glossary import GLOSSARY
from lightly_collapse.report.intervals import told_apart
from lightly_collapse.report.pages.measure import compare_page, compare_plot
from lightly_collapse.report.records import LayerRecord
from lightly_collapse.report.similarity_record import LayerSimilarity


@dataclass(frozen=True)
class Comparison:
    """Reports to be looked at together; made by `compare`.

    Attributes:
        reports: two or more, of different names.
        similarity: of the layers of two models, where it was computed; see `layer_similarity`.
    """

    reports: tuple[CollapseReport, ...]
    similarity: LayerSimilarity | None = None

    def table(self) -> str:
        """The scalars of every model's output as lines of text, one column a model."""
        first = self.reports[0]
        outputs = [_renamed(r.output, r.name) for r in self.reports]
        return replace(first, layers=outputs).table()

    def plot(self) -> Figure:
        """The centred spectra of the outputs, each divided by its largest singular value."""
        return compare_plot(self.reports)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained page.

        Args:
            path: the file.

        Raises:
            OSError: if it cannot be written.
        """
        best = {name: self.best(name) for name in GLOSSARY}
        page = compare_page(self.reports, self.differences(), best, self.similarity)
        atomic_write(path, page.encode())

    def best(self, name: str) -> int | None:
        """The index of the report whose number is better.

        Args:
            name: of the number.

        Returns:
            None where neither is better, all are equal, or the best cannot be told apart from the
            next.
        """
        better = GLOSSARY[name].better
        values = [r.output.scalars.get(name) for r in self.reports]
        known = sorted((v for v in values if v is not None), reverse=better == "higher")
        if better == "neither" or len(known) < 2 or known[0] == known[1]:
            return None
        first, second = (self.reports[values.index(v)].output for v in known[:2])
        ends = [layer.intervals.get(name) for layer in (first, second)]
        if ends[0] and ends[1] and not told_apart(name, ends[0], ends[1]):
            return None
        return values.index(known[0])

    def differences(self) -> list[str]:
        """Which numbers of every two reports can be told apart, where there are intervals.

        Returns:
            A sentence for each pair; of more than three reports, for the first with each other.
        """
        count = len(self.reports)
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count) if count <= 3 or i == 0]
        sentences = [_difference(self.reports[i], self.reports[j]) for i, j in pairs]
        return [sentence for sentence in sentences if sentence]


def compare(reports: Sequence[CollapseReport | str | os.PathLike[str]]) -> Comparison:
    """Put reports side by side.

    Args:
        reports: two or more reports, or paths of what `CollapseReport.save` wrote. Equal names are
            told apart by a number.

    Returns:
        The comparison.

    Raises:
        ValueError: if there are fewer than two, one is no report, or they count collapsed
            dimensions with different tolerances.
        OSError: if a file cannot be read.
    """
    check_compare(reports)
    loaded = [r if isinstance(r, CollapseReport) else CollapseReport.load(r) for r in reports]
    tolerances = sorted({r.settings["collapse_rtol"] for r in loaded})
    if len(tolerances) > 1:
        raise ValueError(
            "reports must count collapsed dimensions with one tolerance to be compared, got "
            + ", ".join(f"{t:g}" for t in tolerances)
        )
    seen: dict[str, int] = {}
    named = []
    for report in loaded:
        seen[report.name] = seen.get(report.name, 0) + 1
        number = seen[report.name]
        named.append(report if number == 1 else replace(report, name=f"{report.name} ({number})"))
    return Comparison(tuple(named))


def _difference(one: CollapseReport, other: CollapseReport) -> str:
    a, b = one.output, other.output
    names = [n for n in GLOSSARY if n in a.intervals and n in b.intervals]
    sure = [n for n in names if n not in a.doubtful and n not in b.doubtful]
    apart = [n for n in sure if told_apart(n, a.intervals[n], b.intervals[n])]
    parts = []
    for word, compared in (("higher", float.__gt__), ("lower", float.__lt__)):
        these = [n for n in apart if compared(sum(a.intervals[n]), sum(b.intervals[n]))]
        if these:
            parts.append(f"{one.name} is {word} in {_titles(these)}")
    if same := [n for n in sure if n not in apart]:
        parts.append(f"they cannot be told apart in {_titles(same)}")
    if unknown := [n for n in names if n not in sure]:
        parts.append(f"their intervals in {_titles(unknown)} are not to be relied on")
    return f"{one.name} and {other.name}, at 95 %: {'; '.join(parts)}." if parts else ""


def _titles(names: Sequence[str]) -> str:
    return ", ".join(GLOSSARY[n].title for n in names)


def _renamed(layer: LayerRecord, name: str) -> LayerRecord:
    return replace(layer, name=name)
