"""Several reports side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from lightly_collapse._combinations import check_compare
from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.pages.measure import compare_page, compare_plot
from lightly_collapse.report.records import LayerRecord


@dataclass(frozen=True)
class Comparison:
    """Reports to be looked at together; made by `compare`.

    Attributes:
        reports: two or more, of different names.
    """

    reports: tuple[CollapseReport, ...]

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
        atomic_write(path, compare_page(self.reports).encode())


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


def _renamed(layer: LayerRecord, name: str) -> LayerRecord:
    return replace(layer, name=name)
