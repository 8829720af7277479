"""The `predict` command: images and a transform by name, prediction, page and files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits

from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.report.pages.predict import predict_page, spectrum_png
from lightly_collapse.theory import CollapsePrediction, predict_collapse

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class ImageFiles:
    """The images under a folder, at any depth, as a map-style dataset of RGB images.

    Args:
        folder: where to look.

    Raises:
        ValueError: if there is no such folder or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"data must be 'digits' or a folder of images, got {folder}")
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not self.paths:
            raise ValueError(
                f"data must hold images ({', '.join(_SUFFIXES)}), found none under {folder}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        """The image of that number, decoded."""
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


def load_images(data: str) -> Any:
    """The images behind `--data`: `digits` for scikit-learn's, or a folder."""
    if data == "digits":
        return [Image.fromarray((scan * 15.9375).astype("uint8")) for scan in load_digits().images]
    return ImageFiles(Path(data))


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


TRANSFORMS = ("simclr", "byol", "moco", "simsiam", "vicreg", "dino")
"""Names for `--transform`."""


def named_transform(name: str, size: int) -> Any:
    """Lightly's transform of a method, for images of `size` pixels.

    Raises:
        ValueError: if the name is unknown or the size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if name not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {name!r}")
    return _transforms()[name](size)


def predict(
    data: str,
    transform: str = "simclr",
    *,
    size: int = 32,
    output: Path = Path("collapse-prediction"),
    training_steps: int = 0,
    learning_rate: float = 1e-3,
    temperature: float = 0.1,
    console: Console | None = None,
    **settings: Any,
) -> CollapsePrediction:
    """Predict, print a table, and write `prediction.json`, `spectrum.png` and `report.html`.

    Args:
        data: `digits`, or a folder of images.
        transform: name of a method in Lightly, one of `TRANSFORMS`.
        size: of the views in pixels.
        output: folder for the files.
        training_steps: also predict the spectrum after so many SGD steps of InfoNCE; 0 for not.
        learning_rate: of those steps.
        temperature: of their softmax.
        console: where to print; standard output by default.
        settings: of `predict_collapse`.

    Returns:
        The prediction.

    Raises:
        ValueError: if an argument is out of its range or there are no images.
        OSError: if an image cannot be read or a file not be written.
    """
    console = console or Console()
    check_writable_folder(output)
    images, views = load_images(data), named_transform(transform, size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        prediction = predict_collapse(images, views, progress=progress, **settings)
        record = {"data": data, "transform": transform, "size": size, **prediction.to_dict()}
        if training_steps:
            run = prediction.after_training(
                training_steps,
                learning_rate,
                temperature=temperature,
                progress=lambda done, total: progress("linear dynamics", done, total),
            )
            record["finite_time"] = {
                "steps": training_steps,
                "learning_rate": learning_rate,
                "temperature": temperature,
                "spectrum": run.spectrum[-1].clamp(min=0).sqrt().mean(0).tolist(),
            }
    console.print(_table(prediction))
    atomic_write(output / "prediction.json", json.dumps(record, indent=1).encode())
    atomic_write(output / "spectrum.png", spectrum_png(record))
    atomic_write(output / "report.html", predict_page(record, prediction).encode())
    console.print(f"Written to {output}: report.html, spectrum.png, prediction.json")
    return prediction


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
