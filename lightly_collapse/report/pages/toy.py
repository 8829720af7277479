"""Figures of the small experiments, in the manner of the papers'."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightly_collapse.report.pages.figures import COLORS, figure, panels
from lightly_collapse.theory import LinearDynamics, QuarticLandscape
from lightly_collapse.theory.against_training import TrainingComparison
from lightly_collapse.theory.questions import Answer
from lightly_collapse.theory.relu_layer import ReluComparison

_ROUNDING = 1e-14


def spectra_figure(
    run: LinearDynamics, levels: Sequence[float] = (), closed_form: bool = False
) -> Figure:
    """Embedding spectrum of the first seed over training."""
    shades = _shades(run.spectrum.shape[2])
    with figure() as (fig, axes):
        steps = run.steps.numpy()
        for k, shade in enumerate(shades):
            axes.plot(steps, _seen(run.spectrum[:, 0, k]), color=shade, linewidth=1.2)
            if closed_form:
                axes.plot(
                    steps, run.closed_form[:, 0, k] ** 4, color=shade, linewidth=1, linestyle="--"
                )
        for level in levels:
            axes.axhline(level, linestyle="--", color=COLORS[0], linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("SGD steps")
        axes.set_ylabel("eigenvalue of the embedding covariance")
        axes.margins(x=0.01)
    return fig


def layers_figure(run: LinearDynamics, until: float) -> Figure:
    """Singular values of the layer, and the closed form, until a time of gradient flow."""
    early = run.time <= until
    shades = _shades(run.closed_form.shape[2])
    with figure() as (fig, axes):
        for k, shade in enumerate(shades):
            axes.plot(run.time[early], run.singular_values[0][early, 0, k], color=shade)
            axes.plot(
                run.time[early], run.closed_form[early, 0, k], color=shade, linestyle="--",
                linewidth=1,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 10)
        axes.set_xlabel("time t of gradient flow: steps × learning rate")
        axes.set_ylabel("singular value of the layer")
        axes.margins(x=0.01)
    return fig


def weights_figure(run: LinearDynamics) -> Figure:
    """Singular values of every layer over training, first seed."""
    count = len(run.singular_values)
    columns = min(2, count)
    rows = -(-count // columns)
    shades = _shades(run.singular_values[0].shape[2])
    with panels(rows, columns, height=2.9 * rows) as (fig, axes):
        for ax in axes[count:]:
            ax.remove()
        for number, (ax, values) in enumerate(zip(axes, run.singular_values, strict=False), 1):
            for k, shade in enumerate(shades):
                ax.plot(run.steps, _seen(values[:, 0, k]), color=shade, linewidth=1.2)
            ax.set_yscale("log")
            ax.set_title(f"layer {number}")
            ax.set_xlabel("SGD steps")
            ax.margins(x=0.01)
        for ax in axes[:count:columns]:
            ax.set_ylabel("singular value of the weight")
    return fig


def amplitudes_figure(found: Mapping[float, Tensor]) -> Figure:
    """Singular values of a layer at the end, by the strength of the augmentation."""
    with figure() as (fig, axes):
        shades = _shades(len(found))
        for shade, (noise, values) in zip(shades, sorted(found.items()), strict=True):
            index = range(1, len(values) + 1)
            axes.plot(index, values, "o-", color=shade, markersize=4, label=f"noise {noise:g}")
        axes.set_yscale("log")
        axes.set_xlabel("index, largest first")
        axes.set_ylabel("singular value of the layer")
        axes.legend()
    return fig


def alignment_figure(run: LinearDynamics) -> Figure:
    """|V^T U| of the last two layers, first seed, at the end."""
    if run.alignment is None:
        raise ValueError("run must have two layers to be aligned, got one")
    with figure(5.4, 4.4) as (fig, axes):
        image = axes.imshow(run.alignment[0].numpy(), cmap="viridis", vmin=0, vmax=1)
        axes.grid(visible=False)
        last = len(run.layers)
        axes.set_xlabel(f"left singular vector of layer {last - 1}")
        axes.set_ylabel(f"right singular vector of layer {last}")
        fig.colorbar(image, ax=axes, label="|cosine|")
    return fig


def landscape_figure() -> Figure:
    """Sections of three landscapes of one embedding dimension over two input dimensions."""
    clean, calm = torch.diag(torch.tensor([1.0, 0.7])), torch.diag(torch.tensor([0.1, 0.1]))
    strong = torch.diag(torch.tensor([0.1, 1.5]))
    cases = {
        "signal in both": QuarticLandscape.from_covariances(clean, calm),
        "second randomised": QuarticLandscape.from_covariances(clean, strong, invariance=1.0),
        "weight decay 1.2": QuarticLandscape.from_covariances(clean, calm, weight_decay=1.2),
    }
    axis = torch.linspace(-1.2, 1.2, 121)
    with panels(1, 3, height=2.9) as (fig, axes):
        for ax, (title, landscape) in zip(axes, cases.items(), strict=True):
            losses = torch.stack(
                [torch.stack([landscape.loss(torch.stack([x, y])[None]) for x in axis])
                 for y in axis]
            )  # fmt: skip
            levels = torch.linspace(float(losses.min()), 0.3, 16).tolist()
            ax.contourf(axis, axis, losses, levels=levels, cmap="Blues_r")
            minimum = landscape.global_minimum(1)[0]
            for sign in (1, -1):
                ax.plot(*(sign * minimum).tolist(), "o", color="white", markersize=6,
                        markeredgecolor="black")  # fmt: skip
            if landscape.rank(2) == 2:
                saddle = landscape.stationary_point([1], 1)[0]
                for sign in (1, -1):
                    ax.plot(*(sign * saddle).tolist(), "x", color=COLORS[3], markersize=7)
            ax.set_aspect("equal")
            ax.grid(visible=False)
            ax.set_title(title)
            ax.set_xlabel("weight of the first")
        axes[0].set_ylabel("weight of the second")
    return fig


def answer_figure(answer: Answer) -> Figure:
    """Predicted lines and trained points of one of the four questions."""
    with figure(height=3.4) as (fig, axes):
        for number, (label, (x, y)) in enumerate(answer.lines.items()):
            axes.plot(x, y, label=label, color=COLORS[1 + number])
        first = 1 + len(answer.lines)
        for number, (label, (x, y)) in enumerate(answer.points.items(), first):
            axes.plot(x, y, "o", label=label, color=COLORS[number % len(COLORS)])
        if answer.log_x:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(answer.xlabel)
        axes.set_ylabel(answer.ylabel)
        axes.legend()
    return fig


def comparison_figure(found: Sequence[TrainingComparison]) -> Figure:
    """Predicted and trained spectra at up to four strengths of noise."""
    stride = max(1, len(found) // 4)
    chosen = found[1::stride][:4] if len(found) > 1 else found
    rows = -(-len(chosen) // 2)
    with panels(rows, min(2, len(chosen)), height=2.9 * rows) as (fig, axes):
        for ax, c in zip(axes, chosen, strict=False):
            index = range(1, len(c.predicted) + 1)
            for values, style, color, label in (
                (c.predicted, "-", COLORS[1], "landscape"),
                (c.spectral, ".", COLORS[1], "spectral loss, trained"),
                (c.finite_time, "-", COLORS[3], "linear dynamics"),
                (c.infonce, ".", COLORS[3], "InfoNCE, trained"),
            ):
                if values is not None:
                    relative = (values / values[0]).clamp(min=1e-12)
                    ax.plot(index, relative, style, color=color, label=label, markersize=4)
            ax.set_yscale("log")
            ax.set_ylim(1e-8, 2)
            ax.set_title(f"noise {c.noise:g}")
        for ax in axes[:: min(2, len(chosen))]:
            ax.set_ylabel("eigenvalue / largest")
        for ax in axes[-min(2, len(chosen)) :]:
            ax.set_xlabel("index, largest first")
        axes[0].legend(fontsize=8)
    return fig


def relu_figure(found: Sequence[ReluComparison]) -> Figure:
    """Predicted and trained spectra of networks with one ReLU layer."""
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    with panels(rows, columns, height=2.9 * rows) as (fig, axes):
        for ax in axes[len(found) :]:
            ax.remove()
        for ax, c in zip(axes, found, strict=False):
            index = range(1, len(c.trained) + 1)
            for values, style, color, label in (
                (c.from_pixels, ":", COLORS[2], "landscape of the pixels"),
                (c.from_start, "-", COLORS[1], "landscape, random hidden layer"),
                (c.last_layer, ".", COLORS[1], "last layer trained"),
                (c.from_end, "-", COLORS[3], "landscape, trained hidden layer"),
                (c.trained, ".", COLORS[3], "all trained"),
            ):
                ax.plot(index, values, style, color=color, label=label, markersize=5)
            ax.set_ylim(0, 1.05)
            ax.set_title(f"noise {c.noise:g}")
        for ax in axes[: len(found) : columns]:
            ax.set_ylabel("eigenvalue")
        for ax in axes[: len(found)][-columns:]:
            ax.set_xlabel("index, largest first")
        axes[0].legend(fontsize=7)
    return fig


def _seen(values: Tensor) -> Tensor:
    """Values without those that are zero but for rounding, where a line ends."""
    return values.where(values > _ROUNDING, torch.nan)


def _shades(count: int) -> list[tuple[float, float, float]]:
    """Blue to orange, the largest first; both ends show on white and on black."""
    first, last = (0.18, 0.49, 0.85), (0.85, 0.51, 0.17)
    return [
        (
            first[0] + (last[0] - first[0]) * k / max(1, count - 1),
            first[1] + (last[1] - first[1]) * k / max(1, count - 1),
            first[2] + (last[2] - first[2]) * k / max(1, count - 1),
        )
        for k in range(count)
    ]
