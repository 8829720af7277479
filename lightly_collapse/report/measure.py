"""Measure the collapse of a model: its representation, its hidden features, its weights."""

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from lightly_collapse.metrics import FeatureHooks, LayerMetrics, WeightSpectrum, weight_spectra
from lightly_collapse.metrics.features import feature_rows
from lightly_collapse.report.records import (
    CollapseReport,
    LayerRecord,
    WeightRecord,
    finite,
    rounded,
)

_OUTPUT = "output"
_MOST_STAGES = 24


def measure(
    model: nn.Module,
    dataloader: Iterable[Any],
    layers: Sequence[str] | None = None,
    *,
    positions: str = "mean",
    rtol: float = 1e-3,
    lid_k: int = 20,
    lid_size: int = 5000,
    seed: int = 0,
    device: torch.device | str | None = None,
    name: str | None = None,
    progress: bool = False,
) -> CollapseReport:
    """Pass the data through a model once and measure what it makes of it.

    Args:
        model: maps a batch of images to a tensor, its representation; a feature map is averaged
            over its positions or not, as `positions` says. It is measured in evaluation mode and
            left in the mode it was in.
        dataloader: gives batches: tensors, or tuples and lists that begin with one (as
            `(images, labels)`, or a list of views, of which the first is taken).
        layers: names of further layers to measure, as in `model.named_modules()`. By default the
            stages of the model, such as `layer1` to `layer4`.
        positions: `mean` over the positions of a sample, or `all` of them as rows.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of the sample.
        device: where to compute; by default where the model is.
        name: what the model is called in tables and figures; its class by default.
        progress: show a progress bar on standard error.

    Returns:
        The report.

    Raises:
        ValueError: if the dataloader is empty, a batch holds no tensor, a layer does not exist or
            is not called, or an argument is out of range.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> _ = torch.manual_seed(0)
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten())
        >>> report = measure(encoder, DataLoader(torch.rand(64, 3, 8, 8), batch_size=16))
        >>> report.output.dimensions, int(report.output.scalars["rows"])
        (8, 64)
    """
    chosen = list(stages(model) if layers is None else layers)
    probes = {n: LayerMetrics(rtol, lid_k, lid_size, seed) for n in (_OUTPUT, *chosen)}
    widths: dict[str, int] = {}

    def take(layer: str, rows: Tensor) -> None:
        widths[layer] = rows.shape[1]
        probes[layer].update(rows)

    parameter = next(model.parameters(), torch.empty(0))
    target = torch.device(device) if device is not None else parameter.device
    modes = [(module, module.training) for module in model.modules()]
    model.eval().to(target)
    taps = FeatureHooks(model, chosen, take, positions) if chosen else None
    try:
        with torch.no_grad():
            for batch in _bar(dataloader, progress):
                take(_OUTPUT, feature_rows(model(_images(batch).to(target)), positions))
    finally:
        if taps is not None:
            taps.remove()
        for module, training in modes:
            module.training = training
    if _OUTPUT not in widths:
        raise ValueError("dataloader must give at least one batch, got none")
    silent = [n for n in chosen if n not in widths]
    if silent and layers is not None:
        raise ValueError(f"layers must be called in forward, got {', '.join(map(repr, silent))}")
    return CollapseReport(
        name=name or type(model).__name__,
        layers=[_layer(n, widths[n], probes[n]) for n in (_OUTPUT, *chosen) if n in widths],
        weights=[_weight(n, s) for n, s in _weights(model).items()],
        settings={
            "collapse_rtol": rtol,
            "positions": positions,
            "lid_k": lid_k,
            "lid_size": lid_size,
            "seed": seed,
        },
    )


def stages(model: nn.Module) -> list[str]:
    """The layers worth looking at by default: the model's coarsest parts that hold weights.

    Children with weights, opened up while there are fewer than four (a Vision Transformer keeps
    its blocks one or two levels down) and as long as it gives no more than two dozen.

    Args:
        model: any module.

    Returns:
        Names as in `named_modules()`, in order.

    Examples:
        >>> from torchvision.models import resnet18
        >>> stages(resnet18())
        ['conv1', 'layer1', 'layer2', 'layer3', 'layer4', 'fc']
    """
    names = _weighty_children(model, "")
    while len(names) < 4:
        opened = [
            inner for n in names for inner in (_weighty_children(model.get_submodule(n), n) or [n])
        ]
        if opened == names or len(opened) > _MOST_STAGES:
            break
        names = opened
    return names


def _weighty_children(module: nn.Module, prefix: str) -> list[str]:
    return [
        f"{prefix}.{child}" if prefix else child
        for child, part in module.named_children()
        if any(p.ndim > 1 for p in part.parameters())
    ]


def _images(batch: Any) -> Tensor:
    while isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise ValueError(
            f"dataloader must give tensors or sequences that begin with one, got "
            f"{type(batch).__name__}"
        )
    return batch


def _bar(dataloader: Iterable[Any], shown: bool) -> Iterable[Any]:
    if not shown:
        yield from dataloader
        return
    total = len(dataloader) if isinstance(dataloader, Sized) else None
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=total)
        for batch in dataloader:
            yield batch
            bar.advance(task)


def _layer(name: str, width: int, probe: LayerMetrics) -> LayerRecord:
    reading = probe.compute()
    problems = dict(reading.problems)
    if math.isinf(reading.scalars["condition_number"]):
        problems["condition_number"] = "infinite, the weakest direction cannot be told from zero"
    return LayerRecord(
        name=name,
        dimensions=width,
        scalars=finite(reading.scalars),
        problems=problems,
        spectrum=[] if reading.spectrum is None else list(map(rounded, reading.spectrum.tolist())),
        lid=[] if reading.lid is None else list(map(rounded, reading.lid.tolist())),
    )


def _weights(model: nn.Module) -> dict[str, WeightSpectrum]:
    # A model without such a layer, say of fixed random features, is measured all the same.
    if not any(p.ndim > 1 for p in model.parameters()):
        return {}
    return weight_spectra(model)


def _weight(name: str, spectrum: WeightSpectrum) -> WeightRecord:
    numbers = finite(
        {
            "stable_rank": spectrum.stable_rank,
            "condition_number": spectrum.condition_number,
        }
    )
    return WeightRecord(
        name=name,
        shape=spectrum.shape,
        normalized_eigenvalues=list(map(rounded, spectrum.normalized_eigenvalues.tolist())),
        orthogonality_residual=rounded(spectrum.orthogonality_residual),
        **numbers,
    )
