"""The `toy` command: the papers' small experiments, with a page, a figure and JSON."""

import json
import math
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lightly_collapse._arguments import (
    OutputFolder,
    Seed,
    Steps,
    UpTo1000,
    UpToAMillion,
    validated,
)
from lightly_collapse._combinations import check_toy
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.report.pages.figures import to_png, to_svg
from lightly_collapse.report.pages.shell import render
from lightly_collapse.report.pages.toy import (
    alignment_figure,
    amplitudes_figure,
    answer_figure,
    landscape_figure,
    layers_figure,
    spectra_figure,
    weights_figure,
)
from lightly_collapse.report.toy_training import (
    Content,
    OnProgress,
    digits_content,
    relu_layer_content,
)
from lightly_collapse.theory import (
    LinearDynamics,
    QuarticLandscape,
    implicit_regularization_dynamics,
    strong_augmentation_dynamics,
)
from lightly_collapse.theory.questions import answer_all

Experiment = Literal[
    "strong-augmentation", "implicit-regularization", "landscape", "digits", "relu-layer"
]
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)
"""Names for `toy`."""


_AMPLITUDES = (0.1, 0.5, 1.0, 1.5)
"""Standard deviations of the noise whose weights are shown beside one another."""

_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


@validated
def toy(
    experiment: Experiment,
    *,
    runs: UpTo1000 | None = None,
    seed: Seed = 0,
    noise: UpToAMillion | None = None,
    steps: Steps | None = None,
    layers: UpTo1000 | None = None,
    relu: bool | None = None,
    output: OutputFolder = "collapse-toy",
    console: Console | None = None,
) -> None:
    """Run one of the papers' small experiments: how and why a linear network collapses.

    Prints the numbers and writes `toy.json`, `figure.png` and `report.html`.

    Args:
        experiment: strong-augmentation, implicit-regularization, landscape, digits or relu-layer.
        runs: of the first two experiments, one a seed; 5 by default.
        seed: the first.
        noise: standard deviation of the augmentation in the first two; the papers' by default.
        steps: of SGD, not in the landscape; the papers' by default.
        layers: of the network of implicit-regularization; 2 by default.
        relu: put ReLUs between them; none by default.
        output: folder for the files; made if missing.
        console: where to print; standard output by default.

    Raises:
        ValueError: if an argument is out of its range or without effect in the experiment.
        OSError: if the folder cannot be written.
    """
    given = {"runs": runs, "noise": noise, "steps": steps, "layers": layers, "relu": relu}
    check_toy(experiment, **given)
    console = console or Console()
    folder = check_writable_folder(output)
    options = {k: value for k, value in given.items() if k != "runs" and value is not None}
    seeds = range(seed, seed + (runs or 5))
    start = time.perf_counter()
    columns = (TextColumn(experiment), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(experiment)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        content = _RUNS[experiment](seeds, options, progress)
    seconds = time.perf_counter() - start
    for sentence in content["verdict"]:
        console.print(sentence)
    record = {"experiment": experiment, "seconds": seconds, **content["record"]}
    figures = content.pop("figures")
    page = render(
        "toy.html",
        title=content["title"],
        verdict=content["verdict"],
        table=content["table"],
        figures=[(to_svg(fig, caption), caption) for fig, caption in figures],
        seconds=seconds,
    )
    atomic_write(folder / "toy.json", json.dumps(record, indent=1).encode())
    atomic_write(folder / "figure.png", to_png(figures[0][0]))
    for number, (fig, _) in enumerate(figures[1:], start=2):
        atomic_write(folder / f"figure-{number}.png", to_png(fig))
    atomic_write(folder / "report.html", page.encode())
    console.print(f"{seconds:.0f} s. Wrote report.html, figure.png and toy.json to {folder}")


def _strong_augmentation(seeds: range, options: dict[str, Any], progress: OnProgress) -> Content:
    # Often enough to see the first moments, in which the closed form holds.
    run = strong_augmentation_dynamics(**options, record_every=10, seeds=seeds, progress=progress)
    noise = float(options.get("noise", 1.5))
    amplitudes = {noise: run.singular_values[0][-1, 0]}
    rest = {k: value for k, value in options.items() if k != "noise"}
    for strength in _AMPLITUDES:
        if strength not in amplitudes:
            other = strong_augmentation_dynamics(
                strength, **rest, record_every=int(run.steps[-1]), seeds=seeds[:1]
            )
            amplitudes[strength] = other.singular_values[0][-1, 0]
    c = torch.cat([torch.zeros(8), torch.full((8,), noise**2)]).diag()
    landscape = QuarticLandscape.from_covariances(torch.eye(16), c)
    predicted = landscape.whitened_eigenvalues[-1] ** 2 / landscape.whitened_eigenvalues[0] ** 2
    final = run.spectrum[-1]
    ratio = final[:, 8:].median(1).values.mean() / final[:, :8].mean()
    verdict = [
        f"Noise {noise:g} on the last 8 of 16 coordinates, {int(run.steps[-1])} steps, "
        f"{_runs(seeds)}. Clean eigenvalues {_range(final[:, :8])}; noisy ones, each seed's "
        f"last left out, {_range(final[:, 8:15])}; the last {_range(final[:, 15:])}. "
        f"Below 1e-2 of the largest: {_counts(run)} of 16.",
        f"Noisy to clean eigenvalues: {predicted:.3f} predicted by the landscape, {ratio:.3f} "
        f"trained (median noisy over mean clean).",
    ]
    figures = [
        (
            spectra_figure(run, levels=[0.1, 0.1 * float(predicted)]),
            "Eigenvalues of the clean data's embedding covariance over training, first seed; the "
            "dashed lines are the landscape's prediction of where clean and noisy ones end.",
        ),
        (
            layers_figure(run, until=min(0.2, float(run.time[-1]))),
            "Singular values of the layer early in training (solid) and those of W(0) exp(X(0) t) "
            "(dashed), the closed form with X as it is at the start. It holds for the first "
            "moments, and shows from there which directions lose: X is negative along the noise.",
        ),
        (
            amplitudes_figure(amplitudes),
            "Singular values of the layer at the end, first seed, at several strengths of the "
            "augmentation: the stronger, the smaller those of the augmented directions.",
        ),
    ]
    return _content("Strong augmentation collapses what it randomises", verdict, figures, run)


def _implicit_regularization(
    seeds: range, options: dict[str, Any], progress: OnProgress
) -> Content:
    run = implicit_regularization_dynamics(**options, seeds=seeds, progress=progress)
    final = run.spectrum[-1].clamp(min=1e-38).log()
    what = f"{_COUNTS.get(len(run.layers), len(run.layers))} layer{'s' * (len(run.layers) > 1)}"
    what += " with ReLUs between them" if options.get("relu") else ""
    what = what[0].upper() + what[1:]
    verdict = [
        f"{what}, {int(run.steps[-1])} steps, {_runs(seeds)}. Log eigenvalues of the "
        f"embedding: the first twelve {_range(final[:, :12])}; after them, mean over seeds, "
        f"{', '.join(f'{v:.1f}' for v in final[:, 12:].mean(0).tolist())}. "
        f"Below 1e-2 of the largest: {_counts(run)} of 16.",
    ]
    solved = run.closed_form.numel() > 0
    if solved:
        predicted = 4 * run.closed_form[-1, 0].log()
        verdict.append(
            "The coupled equation of aligned layers, from the start alone, puts the first twelve "
            f"at {predicted[:12].mean():.1f} and the last four at "
            f"{', '.join(f'{v:.1f}' for v in predicted[12:].tolist())}."
        )
    figures = [
        (
            spectra_figure(run, closed_form=solved),
            "Eigenvalues of the embedding covariance over training, first seed (solid)"
            + (
                ", and those of the coupled equation of aligned layers from the same start (dashed)"
                if solved
                else ""
            )
            + ": small singular values grow exponentially more slowly, and the smallest have not "
            "arrived at the end.",
        ),
        (
            weights_figure(run),
            "Singular values of the weights over training, first seed: the large ones grow "
            "together, the smallest stay near where they started.",
        ),
    ]
    if run.alignment is None:
        return _content("Overparameterized networks collapse by themselves", verdict, figures, run)
    figures.append(
        (
            alignment_figure(run),
            "Alignment of the last two layers at the end, |Vᵀ U|, first seed. Where two blocks "
            "show, they are the directions that grew, among which nearly equal singular values "
            "leave the vectors free, and those that lag behind.",
        )
    )
    return _content("Overparameterized networks collapse by themselves", verdict, figures, run)


def _landscape(seeds: range, _options: dict[str, Any], progress: OnProgress) -> Content:
    answers = answer_all(seeds[0], progress)
    figures = [
        (
            landscape_figure(),
            "The landscape of one embedding dimension over two input dimensions. Left: both carry "
            "signal; the minima lie on the better direction, the other is a saddle. Middle: strong "
            "augmentation and a loss that weighs invariance; the augmented direction is gone. "
            "Right: weight decay over the signal, and nothing is left but the origin.",
        ),
        *((answer_figure(a), f"{a.question} {a.sentence}") for a in answers),
    ]
    return {
        "title": "The loss landscape, and the four questions it answers",
        "verdict": [f"{a.question} {a.sentence}" for a in answers],
        "figures": figures,
        "table": None,
        "record": {"answers": [vars(a) for a in answers]},
    }


_RUNS: dict[Experiment, Callable[[range, dict[str, Any], OnProgress], Content]] = {
    "strong-augmentation": _strong_augmentation,
    "implicit-regularization": _implicit_regularization,
    "landscape": _landscape,
    "digits": digits_content,
    "relu-layer": relu_layer_content,
}


def _content(
    title: str, verdict: list[str], figures: list[tuple[Any, str]], run: LinearDynamics
) -> Content:
    final = run.spectrum[-1]
    header = ["seed", *(str(k + 1) for k in range(final.shape[1]))]
    rows = [[str(k), *map(_short, row)] for k, row in enumerate(final.tolist())]
    shown = slice(None, None, max(1, len(run.steps) // 100))
    return {
        "title": title,
        "verdict": verdict,
        "figures": figures,
        "table": (header, rows),
        "record": {
            "steps": run.steps[shown].tolist(),
            "final_spectrum": final.tolist(),
            "spectrum": run.spectrum[shown].tolist(),
            "singular_values": [layer[shown].tolist() for layer in run.singular_values],
            "closed_form": _finite(run.closed_form[shown].tolist()),
            "alignment": None if run.alignment is None else run.alignment.tolist(),
        },
    }


def _short(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}"


def _finite(values: Any) -> Any:
    """Nested lists with None, which JSON has, for inf, which it has not."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None


def _runs(seeds: range) -> str:
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _range(values: torch.Tensor) -> str:
    return f"{values.max():.3g} to {values.min():.3g}"


def _counts(run: LinearDynamics) -> str:
    return ", ".join(str(count) for count in run.collapsed().tolist())
