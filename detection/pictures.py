"""Detections on test images, precision-recall curves by class, loss curves."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from detection.results import Curve, Prediction
from detection.voc import Dataset, Photograph
from lightly_collapse.io.files import atomic_write

_SHOWN_IMAGES = 3
_SHOWN_SCORE = 0.5
# Okabe and Ito's colours, told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Drawn:
    """What is drawn of one run.

    Attributes:
        name: of the backbone.
        seed: of the run.
        predictions: on the test set.
        curves: precision over recall by class.
        losses: (iteration, total loss).
    """

    name: str
    seed: int
    predictions: Sequence[Prediction]
    curves: Mapping[str, Curve]
    losses: Sequence[tuple[int, float]]


def draw_pictures(
    runs: Sequence[Drawn], dataset: Dataset, classes: Sequence[str], folder: Path
) -> dict[str, Path]:
    """Draw everything into `folder`.

    Returns:
        Paths of the PNG files by what they show: `detections`, `precision_recall`, `loss`.
    """
    figures = {
        "detections": _detections(runs, dataset, classes),
        "precision_recall": _precision_recall(runs, classes),
        "loss": _losses(runs),
    }
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{name}.png"
        _save(figure, paths[name])
    return paths


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=140, format="png", bbox_inches="tight", facecolor="white")
    atomic_write(path, lambda file: file.write(buffer.getvalue()))


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _style(index: int) -> dict[str, Any]:
    return {"color": _color(index), "linestyle": _STYLES[index % len(_STYLES)]}


def _names(runs: Sequence[Drawn]) -> list[str]:
    return list(dict.fromkeys(run.name for run in runs))


def _detections(runs: Sequence[Drawn], dataset: Dataset, classes: Sequence[str]) -> Figure:
    """Rows: test images; columns: the annotation, then each backbone's first run."""
    first = [next(run for run in runs if run.name == name) for name in _names(runs)]
    photographs = _most_varied(dataset)
    columns = 1 + len(first)
    figure = Figure(figsize=(3.1 * columns, 2.5 * len(photographs)), layout="constrained")
    axes = figure.subplots(len(photographs), columns, squeeze=False)
    for row, photograph in enumerate(photographs):
        with Image.open(photograph.path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(pixels)
            axis.set_axis_off()
            if column == 0:
                boxes = [(list(b.corners), classes.index(b.name)) for b in photograph.boxes]
            else:
                boxes = _confident(first[column - 1].predictions, photograph.image_id)
            if row == 0:
                title = "annotation" if column == 0 else first[column - 1].name
                axis.set_title(title, fontsize=11)
            for (x0, y0, x1, y1), label in boxes:
                outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.4)
                outline.set_edgecolor(_color(label))
                axis.add_patch(outline)
    handles = [Line2D([], [], color=_color(i), linewidth=2, label=n) for i, n in enumerate(classes)]
    figure.legend(
        handles=handles[:20], loc="outside lower center", ncols=min(len(classes), 8), frameon=False
    )
    return figure


def _most_varied(dataset: Dataset) -> list[Photograph]:
    def variety(photograph: Photograph) -> tuple[int, int]:
        return -len({box.name for box in photograph.boxes}), -len(photograph.boxes)

    return sorted(dataset.photographs, key=variety)[:_SHOWN_IMAGES]


def _confident(predictions: Sequence[Prediction], image_id: str) -> list[tuple[list[float], int]]:
    found = [prediction for prediction in predictions if prediction.image_id == image_id]
    return [
        (box, label)
        for prediction in found
        for box, score, label in zip(
            prediction.boxes, prediction.scores, prediction.classes, strict=True
        )
        if score >= _SHOWN_SCORE
    ]


def _precision_recall(runs: Sequence[Drawn], classes: Sequence[str]) -> Figure:
    """A panel for each class: thin lines the runs, thick ones their mean."""
    shown = [name for name in classes if any(name in run.curves for run in runs)]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.9 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    recall = np.linspace(0, 1, 101)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for i, label in enumerate(shown):
        axis = axes.flat[i]
        for j, name in enumerate(_names(runs)):
            curves = [
                r.curves[label].precision for r in runs if r.name == name and label in r.curves
            ]
            style = _style(j)
            for curve in curves:
                axis.plot(recall, curve, linewidth=0.7, alpha=0.45, **style)
            if curves:
                axis.plot(recall, np.mean(curves, axis=0), linewidth=2, **style)
        axis.set_title(label, fontsize=11)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("recall")
        axis.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", "", "0.5", "", "1"))
    for row in axes:
        row[0].set_ylabel("precision at overlap 0.5")
    _legend(figure, runs)
    return figure


def _losses(runs: Sequence[Drawn]) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for j, name in enumerate(_names(runs)):
        for run in (run for run in runs if run.name == name):
            style = _style(j)
            iterations, losses = zip(*run.losses, strict=True) if run.losses else ((), ())
            axis.plot(iterations, losses, linewidth=1.6, **style)
    axis.set_xlabel("iteration")
    axis.set_ylabel("training loss")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(figure, runs)
    return figure


def _legend(figure: Figure, runs: Sequence[Drawn]) -> None:
    handles = [
        Line2D([], [], linewidth=2, label=name, **_style(j)) for j, name in enumerate(_names(runs))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
