"""The demo: one small encoder, six objectives, and what each does to the dimensions."""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from lightly_collapse import __version__
from lightly_collapse._arguments import Epochs, OutputFolder, Seed, validated
from lightly_collapse._combinations import check_demo
from lightly_collapse.functional import singular_values
from lightly_collapse.io.digits import DigitsSplit, digits_split
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.pretrain.demo.methods import (
    METHODS,
    WIDTH,
    DemoSettings,
    DigitEncoder,
    TrainedModel,
    steps_per_epoch,
    train,
)
from lightly_collapse.report import measure
from lightly_collapse.report.pages.demo import demo_page, spectrum_png
from lightly_collapse.report.records import rounded


@dataclass(frozen=True)
class DemoResult:
    """What was measured of one method on the held-out images.

    Attributes:
        method: name on the command line.
        title: name in tables and figures.
        knn: accuracy of the nearest-neighbour vote, in [0, 1].
        linear: accuracy of the linear probe, in [0, 1].
        rankme: RankMe of the representation, out of 128.
        effective_rank: effective rank of the centred representation, out of 128.
        collapsed_dimensions: collapsed dimensions of the centred representation, out of 128.
        mlid: geometric mean of the local intrinsic dimensionality of the representation.
        embedding_rankme: RankMe of the embedding, which the loss acts on.
        embedding_width: dimensions of the embedding.
        spectrum: singular values of the centred representation, in descending order.
        weight_eigenvalues: normalised eigenvalues of the last convolution's weight.
        losses: mean training loss of every epoch, penalties included.
        training_spectra: the same spectrum before training and after every epoch.
    """

    method: str
    title: str
    knn: float
    linear: float
    rankme: float
    effective_rank: float
    collapsed_dimensions: int
    mlid: float
    embedding_rankme: float
    embedding_width: int
    spectrum: list[float]
    weight_eigenvalues: list[float]
    losses: list[float]
    training_spectra: list[list[float]]


@validated
def demo(
    methods: Sequence[str] = tuple(METHODS),
    epochs: Epochs = 20,
    seed: Seed = 0,
    output: OutputFolder = "collapse-demo",
) -> list[DemoResult]:
    """Train a small encoder on real digits by several methods and show how each collapses.

    Shows a progress bar, prints a table, and writes `results.json`, `spectrum.png` and
    `report.html` into the output folder. The same seed gives the same numbers.

    Args:
        methods: any of baseline, so, srip, ldreg, directclr, no-projector; all by default.
        epochs: passes over the training images.
        seed: of everything random.
        output: folder to write to; made if missing.

    Returns:
        One result a method, in the order asked for.

    Raises:
        ValueError: if a method is unknown or none is given, `epochs` is below 1, or `seed` is
            negative.
        OSError: if the output folder cannot be written, before any training.
    """
    names = _check_methods(methods)
    folder = check_writable_folder(output)
    settings = DemoSettings(epochs=epochs, seed=seed)
    digits = digits_split(seed=seed)
    console = Console()
    started = time.perf_counter()
    results = list(_run_all(names, settings, digits, console))
    record = {
        "settings": asdict(settings),
        "versions": _versions(),
        "images": {"train": len(digits.train_labels), "held out": len(digits.test_labels)},
        "seconds": round(time.perf_counter() - started, 1),
        "results": [asdict(result) for result in results],
    }
    atomic_write(folder / "results.json", json.dumps(record, indent=1).encode())
    atomic_write(folder / "spectrum.png", spectrum_png(record))
    atomic_write(folder / "report.html", demo_page(record).encode())
    console.print(_table(results, settings))
    console.print(f"Wrote results.json, spectrum.png and report.html to {folder}")
    return results


def _check_methods(methods: Sequence[str]) -> list[str]:
    check_demo(methods)
    return list(dict.fromkeys(name for word in methods for name in word.split(",") if name))


def _run_all(
    names: Sequence[str], settings: DemoSettings, digits: DigitsSplit, console: Console
) -> Iterator[DemoResult]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    steps = settings.epochs * steps_per_epoch(settings, len(digits.train_images))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(names) * steps, loss=float("nan"))
        for name in names:
            progress.update(bar, description=METHODS[name].title)
            spectra: list[list[float]] = []
            model = train(
                name,
                settings,
                digits.train_images,
                on_step=lambda loss: progress.update(bar, advance=1, loss=loss),
                on_epoch=lambda encoder, to=spectra: to.append(  # type: ignore[misc]
                    _spectrum(encoder, digits.test_images)
                ),
            )
            yield _measure(name, model, settings, digits, spectra)


def _spectrum(encoder: DigitEncoder, images: Tensor) -> list[float]:
    """Singular values of the centred representation, to the digits that a chart shows."""
    encoder.eval()
    with torch.no_grad():
        values = singular_values(encoder(images), center=True)
    encoder.train()
    return [rounded(value) for value in values.tolist()]


def _measure(
    name: str,
    model: TrainedModel,
    settings: DemoSettings,
    digits: DigitsSplit,
    spectra: list[list[float]],
) -> DemoResult:
    report = measure(
        model.encoder,
        [(digits.test_images, digits.test_labels)],
        layers=[],
        train_dataloader=[(digits.train_images, digits.train_labels)],
        head=model.head,
        rtol=settings.collapse_rtol,
        lid_k=settings.lid_k,
    )
    out, embedding = report.output, report.layer("embedding")
    weights = {weight.name: weight for weight in report.weights}
    return DemoResult(
        method=name,
        title=METHODS[name].title,
        knn=report.accuracy["knn"],
        linear=report.accuracy["linear"],
        rankme=out.value("rankme"),
        effective_rank=out.value("effective_rank"),
        collapsed_dimensions=int(out.value("collapsed_dimensions")),
        mlid=out.value("mlid"),
        embedding_rankme=embedding.value("rankme"),
        embedding_width=embedding.dimensions,
        spectrum=out.spectrum,
        weight_eigenvalues=weights[model.encoder.last_convolution()].normalized_eigenvalues,
        losses=model.losses,
        training_spectra=spectra,
    )


def _versions() -> dict[str, str]:
    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = ("torch", "torchvision", "lightly", "scikit-learn", "numpy")
    return {
        "lightly-collapse": __version__,
        "python": platform.python_version(),
        **{package: installed(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def _table(results: Sequence[DemoResult], settings: DemoSettings) -> Table:
    table = Table(
        title=f"Representation of held-out digits, {WIDTH} dimensions",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=f"accuracies in %; collapsed: singular value below {settings.collapse_rtol} of the "
        f"largest; mLID with {settings.lid_k} neighbours",
    )
    table.add_column("method", no_wrap=True)
    for heading in (
        "kNN",
        "linear",
        "RankMe",
        "eff.\nrank",
        "col-\nlapsed",
        "mLID",
        "emb.\nRankMe",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        table.add_row(
            r.title,
            f"{100 * r.knn:.1f}",
            f"{100 * r.linear:.1f}",
            f"{r.rankme:.1f}",
            f"{r.effective_rank:.1f}",
            f"{r.collapsed_dimensions}",
            f"{r.mlid:.2f}",
            f"{r.embedding_rankme:.1f}/{r.embedding_width}",
        )
    return table
