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

from detection.average_precision import Curve, Prediction
from detection.photographs import Dataset, Photograph, load_pixels
from lightly_collapse.io.files import atomic_write

_SHOWN_IMAGES = 3
# Okabe and Ito's colours, told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Corners, class, and score of a detection.
_Shown = tuple[Sequence[float], int, float | None]
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


def _color(index: int) -> Any:
    """A colour for each class: the palette, then hues at the golden angle."""
    if index < len(_COLORS):
        return _COLORS[index]
    return mpl.colors.hsv_to_rgb((index * 0.381966 % 1, 0.75, 0.75))


def _style(index: int) -> dict[str, Any]:
    return {"color": _color(index), "linestyle": _STYLES[index % len(_STYLES)]}


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _names(runs: Sequence[Drawn]) -> list[str]:
    return list(dict.fromkeys(run.name for run in runs))


def _detections(runs: Sequence[Drawn], dataset: Dataset, classes: Sequence[str]) -> Figure:
    """Rows: test images; columns: the annotation, then each backbone's first run."""
    first = [next(run for run in runs if run.name == name) for name in _names(runs)]
    thresholds = [best_threshold(run.predictions, dataset, classes) for run in first]
    photographs = _most_varied(dataset)
    columns = 1 + len(first)
    drawn: set[int] = set()
    figure = Figure(figsize=(3.1 * columns, 2.5 * len(photographs)), layout="constrained")
    axes = figure.subplots(len(photographs), columns, squeeze=False)
    for row, photograph in enumerate(photographs):
        pixels = load_pixels(photograph.path)
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(pixels)
            axis.set_axis_off()
            if column == 0:
                found: list[_Shown] = [
                    (box.corners, classes.index(box.name), None) for box in photograph.boxes
                ]
                title = "annotation"
            else:
                run, threshold = first[column - 1], thresholds[column - 1]
                found = _confident(run.predictions, photograph.image_id, threshold)
                title = f"{run.name} (score above {threshold:.2f})"
            if row == 0:
                axis.set_title(title, fontsize=10, parse_math=False)
            for corners, label, score in found:
                _draw_box(axis, corners, classes[label], score, _color(label))
                drawn.add(label)
    handles = [
        Line2D([], [], color=_color(label), linewidth=2, label=_plain(classes[label]))
        for label in sorted(drawn)
    ]
    _add_legend(figure, handles)
    return figure


def _draw_box(
    axis: Any, corners: Sequence[float], name: str, score: float | None, color: Any
) -> None:
    x0, y0, x1, y1 = corners
    outline = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.2)
    outline.set_edgecolor(color)
    axis.add_patch(outline)
    axis.text(
        *(x0, y0, name if score is None else f"{name} {score:.2f}"),
        fontsize=4.5,
        color="white",
        va="bottom",
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6},
    )


def best_threshold(
    predictions: Sequence[Prediction], dataset: Dataset, classes: Sequence[str]
) -> float:
    """The score above which the detections have the highest F1 at an overlap of 0.5.

    Args:
        predictions: of one run.
        dataset: the test set; difficult objects are left out.
        classes: the names the predictions' indices stand for.

    Returns:
        A score of one of the detections; 0.5 where none is right.
    """
    by_image = {photograph.image_id: photograph for photograph in dataset.photographs}
    outcomes: list[tuple[float, bool]] = []
    for prediction in predictions:
        free = [box for box in by_image[prediction.image_id].boxes if not box.is_difficult]
        triples = zip(prediction.scores, prediction.boxes, prediction.classes, strict=True)
        for score, corners, label in sorted(triples, reverse=True):
            overlaps = [
                _overlap(corners, box.corners) if box.name == classes[label] else 0.0
                for box in free
            ]
            is_right = bool(overlaps) and max(overlaps) >= 0.5
            if is_right:
                free.pop(int(np.argmax(overlaps)))
            outcomes.append((score, is_right))
    outcomes.sort(reverse=True)
    wanted = len([box for p in dataset.photographs for box in p.boxes if not box.is_difficult])
    right = np.cumsum([is_right for _, is_right in outcomes])
    if not len(right) or not right[-1]:
        return 0.5
    f1 = 2 * right / (np.arange(len(right)) + 1 + wanted)
    return outcomes[int(np.argmax(f1))][0]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def _most_varied(dataset: Dataset) -> list[Photograph]:
    def variety(photograph: Photograph) -> tuple[int, int]:
        return -len({box.name for box in photograph.boxes}), -len(photograph.boxes)

    return sorted(dataset.photographs, key=variety)[:_SHOWN_IMAGES]


def _confident(predictions: Sequence[Prediction], image_id: str, threshold: float) -> list[_Shown]:
    return [
        (corners, label, score)
        for prediction in predictions
        if prediction.image_id == image_id
        for corners, score, label in zip(
            prediction.boxes, prediction.scores, prediction.classes, strict=True
        )
        if score >= threshold
    ]


def _precision_recall(runs: Sequence[Drawn], classes: Sequence[str]) -> Figure:
    """A panel for each class: thin lines the runs, thick ones their mean."""
    shown = [name for name in classes if any(name in run.curves for run in runs)]
    columns = max(1, min(len(shown), 4))
    rows = max(1, -(-len(shown) // columns))
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
        axis.set_title(label, fontsize=11, parse_math=False)
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
        Line2D([], [], linewidth=2, label=_plain(name), **_style(j))
        for j, name in enumerate(_names(runs))
    ]
    _add_legend(figure, handles)


def _add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the axes, in as many columns as the figure is wide for."""
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
