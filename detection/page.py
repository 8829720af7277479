"""The page of a comparison: one file, readable on screen, in the dark and on paper."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lightly_collapse.io.files import atomic_write

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Detection transfer</title>
<style>
:root { --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d0d7de; --best: #e6f2ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4af; --paper: #14181d; --line: #333b44; --best: #1d3326; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, figcaption { color: var(--soft); max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--best); font-weight: 600; }
figure { margin: 0; break-inside: avoid; }
figure.narrow { max-width: 38rem; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
@media print {
  :root { --ink: #000; --soft: #333; --paper: #fff; --line: #bbb; --best: #eee; }
  body { margin: 0; max-width: none; font-size: 11pt; }
  .wide { overflow: visible; }
  th, td { padding: .2rem .35rem; font-size: 8.5pt; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<h1>Detection transfer</h1>
<p>Faster R-CNN of {{ results[0].trainer }}, {{ results[0].iterations }} iterations a run, tested on
{{ results[0].images }} images with {{ results[0].boxes }} boxes ({{ results[0].dataset }}). Average
precision as COCO defines it, 0 to 100.
{% if rows[0].seeds == 1 %}
One seed: how far another would differ is not known.
{% else %}
Mean and sample standard deviation over {{ rows[0].seeds }} seeds, so the deviation itself is rough:
a difference smaller than a few deviations says nothing.
{% endif %}</p>
<div class="wide"><table>
<tr><th>backbone</th><th>seeds</th>{% for score in scores %}<th>{{ score }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td>{{ row.seeds }}</td>
{% for score in scores %}<td{% if row[score][0] == best[score] %} class="best"{% endif %}>
{{- "%.1f"|format(row[score][0]) }}
{%- if row[score][1] is not none %} ± {{ "%.1f"|format(row[score][1]) }}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}</table></div>
<h2>Detections</h2>
<figure><img alt="Detections on test images" src="{{ pictures.detections }}">
<figcaption>The most varied test images: the annotation, and what the first seed of each backbone
finds with a score of at least 0.5.</figcaption></figure>
<h2>Precision and recall by class</h2>
<figure><img alt="Precision-recall curves" src="{{ pictures.precision_recall }}">
<figcaption>Overlap 0.5. Thin: the seeds; thick: their mean.</figcaption></figure>
<h2>Training loss</h2>
<figure class="narrow"><img alt="Loss curves" src="{{ pictures.loss }}">
<figcaption>One line for each seed.</figcaption></figure>
<h2>Runs</h2>
<div class="wide"><table>
<tr><th>backbone</th><th>seed</th><th>AP</th><th>AP50</th><th>AP75</th><th>seconds</th><th>weights</th></tr>
{% for result in results %}<tr><td>{{ result.name }}</td>
<td>{{ result.seed }}</td><td>{{ "%.2f"|format(result.AP) }}</td>
<td>{{ "%.2f"|format(result.AP50) }}</td><td>{{ "%.2f"|format(result.AP75) }}</td>
<td>{{ "%.0f"|format(result.seconds) if result.seconds is not none else "resumed" }}</td>
<td>{{ result.weights or "none" }}</td></tr>
{% endfor %}</table></div>
{% if results[0].skipped_boxes %}<p>{{ results[0].skipped_boxes|length }} test boxes skipped:
{{ results[0].skipped_boxes[:5]|join("; ") }}{{ ", ..." if results[0].skipped_boxes|length > 5 }}
</p>{% endif %}
</body>
</html>
"""


def write_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Path],
) -> None:
    """Write the page of a comparison, with its pictures inside.

    Args:
        path: the HTML file.
        rows: a mapping for each backbone: `name`, `seeds`, and (mean, deviation) by score.
        results: the result of each run, and its backbone's `name`.
        pictures: PNG files `detections`, `precision_recall`, `loss`.
    """
    scores = [key for key in rows[0] if key not in {"name", "seeds"}]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = environment.from_string(_TEMPLATE).render(
        rows=rows,
        results=results,
        scores=scores,
        best={score: max(row[score][0] for row in rows) for score in scores},
        pictures={name: _inline(picture) for name, picture in pictures.items()},
    )
    atomic_write(path, lambda file: file.write(html.encode()))


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
