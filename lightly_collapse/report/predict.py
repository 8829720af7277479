"""The `predict` command: images and a transform by name, prediction, page and files."""

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from lightly_collapse._arguments import (
    Arch,
    AtLeastTwo,
    Checkpoint,
    Count,
    ImageData,
    ImageSize,
    OpenShare,
    OutputFolder,
    PositiveFloat,
    Seed,
    StepsOrNone,
    UpToAMillion,
    validated,
)
from lightly_collapse._combinations import check_predict
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.images import (
    IMAGENET,
    InColour,
    ReadableImages,
    load_images,
    unreadable_notes,
)
from lightly_collapse.io.memory import require_memory
from lightly_collapse.io.models import load_model
from lightly_collapse.report.pages.predict import predict_page, spectrum_png
from lightly_collapse.theory import CollapsePrediction, predict_collapse

TransformName = Literal["simclr", "byol", "moco", "simsiam", "vicreg", "dino"]
TRANSFORMS: tuple[TransformName, ...] = get_args(TransformName)
"""The methods whose transforms of Lightly can be asked for by name."""

_POOL = 8


def _transforms() -> dict[str, Callable[[int], Any]]:
    # A second to import, and for nothing where the name is unknown.
    from lightly.transforms.byol_transform import (  # noqa: PLC0415
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )
    from lightly.transforms.dino_transform import DINOTransform  # noqa: PLC0415
    from lightly.transforms.moco_transform import MoCoV2Transform  # noqa: PLC0415
    from lightly.transforms.simclr_transform import SimCLRTransform  # noqa: PLC0415
    from lightly.transforms.simsiam_transform import SimSiamTransform  # noqa: PLC0415
    from lightly.transforms.vicreg_transform import VICRegTransform  # noqa: PLC0415

    # Normalizing changes no prediction (it is linear) and would refuse images of one channel.
    return {
        "simclr": lambda size: SimCLRTransform(input_size=size, normalize=None),
        "byol": lambda size: BYOLTransform(
            view_1_transform=BYOLView1Transform(input_size=size, normalize=None),
            view_2_transform=BYOLView2Transform(input_size=size, normalize=None),
        ),
        "moco": lambda size: MoCoV2Transform(input_size=size, normalize=None),
        "simsiam": lambda size: SimSiamTransform(input_size=size, normalize=None),
        "vicreg": lambda size: VICRegTransform(input_size=size, normalize=None),
        "dino": lambda size: DINOTransform(
            global_crop_size=size, local_crop_size=max(1, size * 3 // 7), normalize=None
        ),
    }


@validated
def named_transform(name: TransformName, size: ImageSize) -> Any:
    """Lightly's transform of a method, without normalisation.

    Args:
        name: of the method.
        size: height and width of the views, in pixels.

    Raises:
        ValueError: if the name is unknown or the size is not positive.
    """
    return _transforms()[name](size)


@validated
def predict(
    data: ImageData,
    transform: TransformName = "simclr",
    *,
    size: ImageSize = 32,
    images: AtLeastTwo = 1000,
    views: AtLeastTwo = 8,
    arch: Arch | None = None,
    checkpoint: Checkpoint | None = None,
    pool: Count | None = None,
    width: Count | None = None,
    weight_decay: UpToAMillion = 0.0,
    rtol: OpenShare = DEFAULT_RTOL,
    training_steps: StepsOrNone = 0,
    learning_rate: PositiveFloat | None = None,
    seed: Seed = 0,
    output: OutputFolder = "collapse-prediction",
    console: Console | None = None,
) -> CollapsePrediction:
    """Predict from images and augmentations which dimensions will collapse, before training.

    Prints a table and writes `prediction.json`, `spectrum.png` and `report.html`.

    Args:
        data: `digits`, or a folder of images.
        transform: Lightly's of a method: simclr, byol, moco, simsiam, vicreg or dino.
        size: height and width of the views, in pixels.
        images: how many images are drawn at random; all where there are fewer.
        views: how many views of each.
        arch: predict for the features of this torchvision or timm model instead of pixels.
        checkpoint: its weights; random ones without.
        pool: without a model, features are pixels averaged to POOL x POOL; 8 by default.
        width: dimensions of the embedding; those of the features by default.
        weight_decay: factor of the squared weights, in the landscape's units.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        training_steps: also predict the spectrum after so many SGD steps of InfoNCE.
        learning_rate: of those steps; 1e-3 by default.
        seed: of images, augmentations and intervals.
        output: folder for the files; made if missing.
        console: where to print; standard output by default.

    Returns:
        The prediction.

    Raises:
        ValueError: if an argument is out of its range or without effect, there are no images, or
            the checkpoint does not fit.
        OSError: if a file cannot be read or written.
    """
    check_predict(arch, checkpoint, pool, size, training_steps, learning_rate)
    side = min(pool or _POOL, size)
    features, encoder = 3 * side**2, None
    if arch is not None or checkpoint is not None:
        features, encoder = _encoder(arch, checkpoint)
    # Covariances, their eigenvectors, and those of the embedding, in float64.
    wide = width or 0
    require_memory(
        8 * (4 * features**2 + 4 * features * wide + 2 * wide**2),
        f"{features} features and width {width or features}",
    )
    console = console or Console()
    folder = check_writable_folder(output)
    found: Any = ReadableImages(load_images(data))
    unreadable = found.unreadable
    require_memory(
        4 * min(images, len(found)) * views * features + 4 * 3 * views * size**2,
        f"{min(images, len(found))} images, {views} views of each and {features} features",
    )
    make_views = named_transform(transform, size)
    if encoder is not None:
        found = InColour(found)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        prediction = predict_collapse(
            found,
            make_views,
            encoder,
            n_images=images,
            n_views=views,
            pool=side,
            width=width,
            weight_decay=weight_decay,
            rtol=rtol,
            seed=seed,
            progress=progress,
        )
        record = {
            "data": data,
            "transform": transform,
            "size": size,
            "encoder": arch or (str(checkpoint) if checkpoint else f"pixels, {side} x {side}"),
            **prediction.to_dict(),
            "unreadable": unreadable,
        }
        if training_steps:
            settings: dict[str, Any] = {"learning_rate": learning_rate or 1e-3, "temperature": 0.1}
            run = prediction.after_training(
                training_steps,
                **settings,
                progress=lambda done, total: progress("linear dynamics", done, total),
            )
            record["finite_time"] = {
                "steps": training_steps,
                **settings,
                "spectrum": run.spectrum[-1].clamp(min=0).sqrt().mean(0).tolist(),
            }
    console.print(_table(prediction))
    largest = float(torch.linalg.eigvalsh(prediction.covariances.data)[-1])
    if weight_decay >= largest:
        console.print(
            f"Every dimension collapses: weight_decay {weight_decay:g} is not below {largest:.3g}, "
            "the largest variance of the images' features."
        )
    for note in unreadable_notes(unreadable):
        console.print(note, markup=False)
    if prediction.n_images < images:
        console.print(f"There are {prediction.n_images} images, fewer than the {images} asked for.")
    atomic_write(folder / "prediction.json", json.dumps(record, indent=1).encode())
    atomic_write(folder / "spectrum.png", spectrum_png(record))
    atomic_write(folder / "report.html", predict_page(record, prediction).encode())
    console.print(f"Wrote report.html, spectrum.png and prediction.json to {folder}", markup=False)
    return prediction


def _encoder(arch: str | None, checkpoint: Any) -> tuple[int, Callable[[Tensor], Tensor]]:
    """The width of a model's features, and the map to them from views in [0, 1]."""
    model: Any = load_model(arch, checkpoint).model

    @torch.no_grad()
    def encode(views: Tensor) -> Tensor:
        return model(IMAGENET(views))

    return getattr(model, "feature_dim", 0), encode


def _table(p: CollapsePrediction) -> Table:
    low, high = p.collapsed_interval
    table = Table(
        title=f"{p.collapsed} of {p.width} dimensions under {p.rtol} of the largest "
        f"({p.confidence:.0%} interval {low} to {high})",
    )
    table.add_column("left out", no_wrap=True)
    for name in ("collapsed", "costs", "effective rank", "costs", "signal costs"):
        table.add_column(name, justify="right")
    signal = float(p.signal_fraction.sum())
    table.add_row("nothing", f"{p.collapsed}", "", f"{p.effective_rank:.1f}", "", f"({signal:.1f})")
    for s in p.leave_one_out:
        table.add_row(
            s.name,
            f"{s.collapsed}",
            f"{s.collapsed_cost:+d}",
            f"{s.effective_rank:.1f}",
            f"{s.effective_rank_cost:+.1f}",
            f"{s.signal_cost:+.1f}",
        )
    return table
