"""The page of a comparison: one file, in the package's page shell."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.statistics import format_estimate, verdicts, warnings
from lightly_collapse.io.files import atomic_write
from lightly_collapse.report.pages.shell import render

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Path],
) -> None:
    """Write the page of a comparison, with its pictures inside.

    Args:
        path: the HTML file.
        rows: of `summarize`.
        results: the result of each run, and its backbone's `name`.
        pictures: PNG files `detections`, `precision_recall`, `loss`.
    """
    scores = [key for key in rows[0] if key not in {"name", "seeds"}]
    best: dict[str, float | None] = {}
    for score in scores:
        means = [row[score][0] for row in rows if row[score][0] is not None]
        best[score] = max(means) if means and len(rows) > 1 else None
    body = [
        [(row["name"], False), (row["seeds"], False)]
        + [(format_estimate(row[s]), best[s] is not None and row[s][0] == best[s]) for s in scores]
        for row in rows
    ]
    html = render(
        "comparison.html",
        folder=_TEMPLATES,
        title="Detection transfer",
        rows=rows,
        results=results,
        headings=["backbone", "seeds", *scores],
        body=body,
        verdicts=verdicts(results),
        warnings=warnings(results),
        pictures={name: _inline(picture) for name, picture in pictures.items()},
    )
    atomic_write(path, html.encode())


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
