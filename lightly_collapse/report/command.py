"""What `lightly-collapse measure` and `lightly-collapse compare` do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.checkpoints import Match, create_backbone, load_checkpoint
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.images import ImageFolderLoader, digits_loader
from lightly_collapse.metrics.features import Positions
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.compare import compare
from lightly_collapse.report.measure import EmptyDataError, measure
from lightly_collapse.report.pages.figures import to_png

_NAMES_SHOWN = 5


def measure_command(
    arch: str,
    data: str,
    checkpoint: Path | None = None,
    output: Path = Path("collapse-measure"),
    layers: Sequence[str] | None = None,
    positions: Positions = "mean",
    rtol: float = DEFAULT_RTOL,
    lid_k: int = DEFAULT_LID_K,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    limit: int | None = None,
    device: str = "auto",
    seed: int = 0,
    name: str | None = None,
) -> CollapseReport:
    """Measure a backbone on images and write `measure.json`, `measure.html` and `spectrum.png`.

    Args:
        arch: name of a torchvision or timm model.
        data: folder of images, or `digits`.
        checkpoint: the weights; random ones where none is given.
        output: folder to write to; made if it is not there.
        layers: further layers to measure; the model's stages by default.
        positions: `mean` or `all`; see `measure`.
        rtol: see `measure`.
        lid_k: see `measure`.
        image_size: height and width in pixels; 224 by default, 32 for the digits.
        batch_size: images a batch.
        workers: processes that read images.
        limit: measure at most this many images.
        device: `auto`, or a name torch knows.
        seed: of random weights and choices.
        name: what the model is called; the checkpoint's or the model's name by default.

    Returns:
        The report.

    Raises:
        ValueError: if an argument is out of range, a name is unknown, the checkpoint fits nothing
            or no image can be read.
        OSError: if a file cannot be read or written.
    """
    folder = check_writable_folder(output)
    torch.manual_seed(seed)
    model = create_backbone(arch)
    match = None if checkpoint is None else load_checkpoint(model, checkpoint)
    size = image_size or (32 if data == "digits" else 224)
    loader: ImageFolderLoader | DataLoader[Any]
    if data == "digits":
        loader = digits_loader(size, batch_size, limit)
    else:
        loader = ImageFolderLoader(data, size, batch_size, workers, limit=limit, seed=seed)
    try:
        report = measure(
            model,
            loader,
            layers,
            positions=positions,
            rtol=rtol,
            lid_k=lid_k,
            seed=seed,
            device=_device(device),
            name=name or (checkpoint.stem if checkpoint else f"{arch}, random weights"),
            progress=True,
        )
    except EmptyDataError as error:
        unreadable = getattr(loader, "unreadable", [])
        if unreadable:
            raise ValueError(
                f"data must hold an image that can be read, got {len(unreadable)} that cannot, "
                f"such as {unreadable[0]}"
            ) from error
        raise
    report = replace(
        report,
        source={"model": arch, "checkpoint": str(checkpoint or "none"), "data": data},
        settings=report.settings | {"image_size": size},
        notes=[*_match_notes(match), *_unreadable_notes(getattr(loader, "unreadable", []))],
    )
    report.save(folder / "measure.json")
    report.to_html(folder / "measure.html")
    atomic_write(folder / "spectrum.png", to_png(report.plot()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(report.table(), markup=False)
    for line in [*report.verdict(), *report.notes]:
        console.print(line, markup=False)
    console.print(f"Wrote measure.json, measure.html and spectrum.png to {folder}", markup=False)
    return report


def compare_command(reports: Sequence[Path], output: Path = Path("collapse-compare")) -> None:
    """Overlay reports and write `compare.html` and `spectrum.png`.

    Args:
        reports: files that `measure` wrote.
        output: folder to write to; made if it is not there.

    Raises:
        ValueError: as `compare`.
        OSError: if a file cannot be read or written.
    """
    comparison = compare(reports)
    folder = check_writable_folder(output)
    comparison.to_html(folder / "compare.html")
    atomic_write(folder / "spectrum.png", to_png(comparison.plot()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(comparison.table(), markup=False)
    console.print(f"Wrote compare.html and spectrum.png to {folder}", markup=False)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto or one that torch knows, got {name!r}") from error


def _match_notes(match: Match | None) -> list[str]:
    if match is None:
        return ["No checkpoint was given: the weights are random."]
    where = f"under the prefix {match.prefix!r}" if match.prefix else "without a prefix"
    notes = [f"{match.loaded} tensors of the checkpoint were loaded, found {where}."]
    random = [*match.missing, *(f"{n} (another shape)" for n in match.mismatched)]
    if random:
        notes.append(
            f"{len(random)} tensors of the model are not in the checkpoint and stay random, so the "
            f"numbers are not those of the trained model: {_list(random)}."
        )
    if match.unused:
        notes.append(
            f"{len(match.unused)} tensors of the checkpoint were not used: {_list(match.unused)}."
        )
    return notes


def _unreadable_notes(unreadable: Sequence[str]) -> list[str]:
    if not unreadable:
        return []
    images = "image" if len(unreadable) == 1 else "images"
    return [f"{len(unreadable)} {images} could not be read and were left out: {_list(unreadable)}."]


def _list(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
