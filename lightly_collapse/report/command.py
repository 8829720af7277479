"""What `lightly-collapse measure` and `lightly-collapse compare` do."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lightly_collapse._arguments import (
    Arch,
    AtLeastTwo,
    Checkpoint,
    Count,
    Device,
    ImageData,
    ImageSize,
    InputFile,
    Name,
    OutputFolder,
    Seed,
    Share,
    Workers,
    validated,
)
from lightly_collapse._combinations import check_compare, check_measure
from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.checkpoints import checkpoint_name
from lightly_collapse.io.devices import find_device
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.image_batches import image_batches
from lightly_collapse.io.images import Preparation, unreadable_notes
from lightly_collapse.io.memory import require_memory
from lightly_collapse.io.models import load_model
from lightly_collapse.io.preparation import published_preparation
from lightly_collapse.io.spectra import FILE_NAME, TrainingSpectra
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.compare import compare
from lightly_collapse.report.embeddings import Engine
from lightly_collapse.report.feature_pass import EmptyDataError
from lightly_collapse.report.measure import measure
from lightly_collapse.report.measured_similarity import measured_similarity
from lightly_collapse.report.pages.figures import to_png

_BATCH_SIZE = 64


@validated
def measure_command(
    arch: Arch | None = None,
    data: ImageData | None = None,
    checkpoint: Checkpoint | None = None,
    prefix: str | None = None,
    reference: Checkpoint | None = None,
    layers: Sequence[Name] | None = None,
    tokens: Tokens = "auto",
    rtol: Share = DEFAULT_RTOL,
    lid_k: AtLeastTwo = DEFAULT_LID_K,
    image_size: ImageSize | None = None,
    batch_size: Count | None = None,
    workers: Workers = 0,
    limit: Count | None = None,
    device: Device = "auto",
    engine: Engine = "local",
    address: str | None = None,
    seed: Seed = 0,
    normalize: bool = False,
    danco: bool = False,
    name: Name | None = None,
    spectra: InputFile | None = None,
    output: OutputFolder = "collapse-measure",
    pretraining: Preparation | None = None,
) -> CollapseReport:
    """Measure the collapse of a backbone on images, or of `--embeddings` in files.

    Writes `measure.json`, `measure.html` and `spectrum.png`.

    Args:
        arch: a model of torchvision or timm, such as resnet50; not needed where the checkpoint says
            what it is.
        data: folder of images, or `digits`; the held-out images of the pretraining by default,
            where config.yaml is beside the checkpoint.
        checkpoint: the weights, in any common format; random ones by default.
        prefix: of the network's names in the checkpoint, such as teacher.
        reference: an earlier checkpoint of the same transformer: how far the similarities between
            patches have moved from it (Gram drift).
        layers: layers to measure beside the output; the model's stages by default.
        tokens: average feature maps over their positions (mean) or take all as rows (all); of a
            transformer's tokens the class token (cls), the patches (patch), or both apart (auto).
        rtol: a dimension below this times the largest singular value counts as collapsed.
        lid_k: neighbours of the local intrinsic dimensionality.
        image_size: height and width in pixels; by default the model's, in the pretraining or as
            published, and 32 for digits and a model that takes any.
        batch_size: images a batch; 64 by default.
        workers: processes that read images.
        limit: measure at most so many images.
        device: auto, cpu, cuda, cuda:N or mps.
        engine: local, or ray for the workers of a Ray cluster, which get the model and read the
            images of `data` themselves.
        address: of the Ray cluster.
        seed: of random weights and choices.
        normalize: divide every row by its norm first, as the DirectCLR paper draws its spectra.
        danco: compute the DANCo intrinsic dimension of the output too, as LDReg does; it takes
            minutes for wide features, and scikit-dimension.
        name: of the model in tables and figures; that of the checkpoint or the model by default.
        spectra: collapse-spectra.json of a training, which the page shows with a slider; that
            beside the checkpoint by default.
        output: folder to write to; made if missing.
        pretraining: how the images of the checkpoint's pretraining were prepared, where known.

    Returns:
        The report.

    Raises:
        ValueError: if an argument is out of range, a name is unknown, the checkpoint does not fit
            or no image can be read.
        OSError: if a file cannot be read or written.
    """
    check_measure(
        arch, data, checkpoint, prefix, workers, engine, address,
        limit=limit, batch_size=batch_size, image_size=image_size, device=device,
    )  # fmt: skip
    batch_size = batch_size or _BATCH_SIZE
    on_cluster = engine == "ray"
    target = (None if device == "auto" else device) if on_cluster else find_device(device)
    folder = check_writable_folder(output)
    training, training_notes = _training_spectra(spectra, checkpoint)
    torch.manual_seed(seed)
    loaded = load_model(arch, checkpoint, prefix=prefix)
    earlier = None if reference is None else load_model(arch, reference, prefix=prefix)
    if loaded.pretrained is None:
        pretraining = None
    how = pretraining or published_preparation(loaded, small=data == "digits")
    if image_size is not None:
        how = replace(how, image_size=image_size, reason="image_size as given")
    require_memory(
        2 * 4 * 3 * batch_size * how.image_size**2,
        f"image_size {how.image_size} and batch_size {batch_size}",
    )
    _check_size(loaded.model, how.image_size, loaded.image_size)
    loader = _loader(data, how, batch_size, workers, limit, seed)
    try:
        report = measure(
            loaded.model,
            loader,
            layers,
            tokens=tokens,
            reference=None if earlier is None else earlier.model,
            rtol=rtol,
            lid_k=lid_k,
            seed=seed,
            normalize=normalize,
            danco=danco,
            device=target,
            engine=engine,
            address=address,
            name=name or (checkpoint_name(checkpoint) if checkpoint else f"{arch}, random weights"),
            progress=True,
        )
    except EmptyDataError as error:
        unreadable = getattr(loader, "unreadable", [])
        if not unreadable:
            raise
        raise ValueError(
            f"data must hold an image that can be read, got {len(unreadable)} that cannot, "
            f"such as {unreadable[0]}"
        ) from error
    report = replace(
        report,
        source={
            "model": loaded.arch,
            "checkpoint": str(checkpoint or "none"),
            **({"objective": loaded.pretrained.method} if loaded.pretrained else {}),
            "data": data or how.held_out_name,
        }
        | ({} if reference is None else {"reference": str(reference)})
        | ({} if prefix is None else {"prefix": prefix}),
        settings=report.settings
        | {
            "image_size": how.image_size,
            "mean": list(how.normalization.mean),
            "std": list(how.normalization.std),
        }
        | ({} if limit is None else {"limit": limit}),
        notes=[
            *report.notes,
            *loaded.notes,
            f"Images of {how.image_size} x {how.image_size} pixels ({how.reason}).",
            *unreadable_notes(getattr(loader, "unreadable", [])),
            *training_notes,
        ],
    )
    report.save(folder / "measure.json")
    report.to_html(folder / "measure.html", training)
    atomic_write(folder / "spectrum.png", to_png(report.plot()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(report.table(), markup=False)
    for line in [*report.verdict(), *report.notes]:
        console.print(line, markup=False)
    console.print(f"Wrote measure.json, measure.html and spectrum.png to {folder}", markup=False)
    return report


def _training_spectra(
    given: str | os.PathLike[str] | None, checkpoint: Any
) -> tuple[TrainingSpectra | None, list[str]]:
    """Those of a file, or what a monitor wrote in the checkpoint's folder or above it; and a note.

    A file that was not asked for and cannot be read is a note.
    """
    if given is not None:
        return TrainingSpectra.load(given), []
    folder = Path(checkpoint).absolute().parent if checkpoint is not None else None
    for path in (folder / FILE_NAME, folder.parent / FILE_NAME) if folder else ():
        if path.is_file():
            try:
                return TrainingSpectra.load(path), []
            except (ValueError, OSError) as error:
                return None, [f"The spectra over training are not shown: {error}."]
    return None, []


def _loader(
    data: str | None, how: Preparation, batch_size: int, workers: int, limit: int | None, seed: int
) -> Any:
    if data is None:
        if how.held_out is None:
            raise ValueError(
                "give --data, a folder of images or `digits`: there is no config.yaml of a "
                "pretraining beside the checkpoint"
            )
        return how.held_out()
    return image_batches(
        data, how.image_size, batch_size, how.normalization, workers=workers, limit=limit, seed=seed
    )


def _check_size(model: nn.Module, size: int, own: int | None) -> None:
    """Raise unless the model takes images of this size."""
    if own is not None and size != own:
        raise ValueError(f"image_size must be {own} for this model, got {size}")
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"image_size: the model does not take images of {size} pixels ({reason}); give another"
        ) from error


@validated
def compare_command(
    reports: Sequence[InputFile], output: OutputFolder = "collapse-compare", cka: bool = False
) -> None:
    """Overlay what measure found of several backbones.

    Writes `compare.html` and `spectrum.png`; with `cka` also `similarity.json`.

    Args:
        reports: two or more measure.json.
        output: folder to write to; made if missing.
        cka: load both models of two reports again, pass the images through them that they were
            measured on, and map the linear CKA of every layer with every other.

    Raises:
        ValueError: as `compare`; with `cka` if the reports are not of images that both models can
            be given again.
        OSError: if a file cannot be read or written.
    """
    check_compare(reports, cka)
    comparison = compare(reports)
    folder = check_writable_folder(output)
    written = ["compare.html", "spectrum.png"]
    if cka:
        similarity = measured_similarity(*comparison.reports)
        comparison = replace(comparison, similarity=similarity)
        similarity.save(folder / "similarity.json")
        written.append("similarity.json")
    comparison.to_html(folder / "compare.html")
    atomic_write(folder / "spectrum.png", to_png(comparison.plot()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(comparison.table(), markup=False)
    for sentence in comparison.differences():
        console.print(sentence, markup=False)
    if comparison.similarity is not None:
        console.print(comparison.similarity.summary(), markup=False)
    files = f"{', '.join(written[:-1])} and {written[-1]}"
    console.print(f"Wrote {files} to {folder}", markup=False)
