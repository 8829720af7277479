"""Measure the collapse of a model: its representation, its hidden features, its weights."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lightly_collapse._checks import check_choice
from lightly_collapse._layers import has_weights
from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics import WeightSpectrum, weight_spectra
from lightly_collapse.metrics.feature_hooks import CLS, PATCH, find_layers, silent_layers
from lightly_collapse.metrics.features import Tokens, check_tokens
from lightly_collapse.report.accuracy import knn_accuracy, linear_accuracy
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.embedding_totals import SketchSettings
from lightly_collapse.report.embeddings import Engine, measure_embeddings
from lightly_collapse.report.feature_pass import EMBEDDING, OUTPUT
from lightly_collapse.report.model_pass import ModelPass
from lightly_collapse.report.records import WeightRecord, finite, rounded

_MOST_STAGES = 24
Classifier = Literal["knn", "linear"]
_KNN = {"k": 20, "temperature": 0.1}


def measure(
    model: nn.Module | Tensor | np.ndarray[Any, Any] | str | os.PathLike[str] | Iterable[Any],
    dataloader: Iterable[Any] | None = None,
    layers: Sequence[str] | None = None,
    *,
    train_dataloader: Iterable[Any] | None = None,
    classifiers: Sequence[Classifier] = ("knn", "linear"),
    head: Callable[[Tensor], Tensor] | None = None,
    tokens: Tokens = "auto",
    channels: int | Mapping[str, int] | None = None,
    reference: nn.Module | None = None,
    rtol: float = DEFAULT_RTOL,
    lid_k: int = DEFAULT_LID_K,
    lid_size: int = 5000,
    seed: int = 0,
    blocks: int = 20,
    normalize: bool = False,
    danco: bool = False,
    device: torch.device | str | None = None,
    engine: Engine = "local",
    address: str | None = None,
    name: str | None = None,
    progress: bool = False,
) -> CollapseReport:
    """Pass the data through a model once and measure its features and weights.

    Args:
        model: maps a batch of images to a tensor, its representation; a feature map is averaged
            over its positions or not, as `tokens` says. It is measured in evaluation mode and
            left in the mode it was in. Or the representations
            themselves: (n, d) rows, a data set of rows, or a path or URL of files of them; see
            `measure_embeddings`.
        dataloader: gives batches: tensors, tuples and lists that begin with one (as
            `(images, labels)`, or a list of views, of which the first is taken), or dictionaries
            with `pixel_values`, `image` or `images`. Not given with representations.
        layers: names of further layers to measure, as in `model.named_modules()`. By default the
            stages of the model, such as `layer1` to `layer4`. With named layers, a model whose own
            output is no tensor is measured in these layers alone.
        train_dataloader: labelled training images, as `(images, labels)`; `dataloader` must then
            give labels too, and the report has the accuracies of a kNN vote and of logistic
            regression on the frozen representation, trained on these and tested on those.
        classifiers: which of the two.
        head: from representations to what the loss acts on, measured as the layer `embedding`.
        tokens: `mean` over the positions of a sample, or `all` of them as rows; of a sequence
            `cls`, `patch` (every patch a row), `mean` of the patches, or `all`. `auto` measures
            class token and patches as two layers, `<layer>.cls` and `<layer>.patch`, where there
            are both (of the model's own output, `output` is the class token), else the mean.
        channels: the axis of the channels, 1 or -1, for all layers or by layer (`output` for the
            model's); found from the layers where it is not given, see `channel_axis`.
        reference: a model that takes the same images, such as that of an earlier checkpoint: the
            layers of patch tokens have `gram_drift` from it, beside the other dense measures.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality; with no more rows than
            that, all others, with a warning.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of the sample and the blocks.
        blocks: for the jackknife of the intervals; 1 for none.
        normalize: divide every row by its norm first, as spectra in the DirectCLR paper are drawn;
            not with representations, which are the caller's to divide.
        danco: compute the DANCo intrinsic dimension of the output too, as LDReg does, which takes
            minutes where it is wide and needs scikit-dimension; not with representations.
        device: where to compute; by default where the model is, and on a cluster a GPU for each
            worker where it has any.
        engine: `local`, or `ray` for the workers of a Ray cluster, to which the model is sent;
            `dataloader` is then a loader of this package, or a DataLoader that does not shuffle.
        address: of the Ray cluster; by default the running one or a new one on this machine.
        name: what the model is called in tables and figures; its class by default.
        progress: show a progress bar on standard error.

    Returns:
        The report.

    Raises:
        ValueError: if the dataloader is empty, a batch holds no tensor, labels are missing, a layer
            does not exist or is not called, the reference cannot be run or no layer of both gives
            patch tokens, or an argument is out of range.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> _ = torch.manual_seed(0)
        >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten())
        >>> report = measure(encoder, DataLoader(torch.rand(64, 3, 8, 8), batch_size=16))
        >>> report.output.dimensions, int(report.output.scalars["rows"])
        (8, 64)
        >>> measure(torch.randn(100, 8)).output.name
        'output'
    """
    check_tokens(tokens)
    if danco and find_spec("skdim") is None:
        raise ValueError(
            "danco needs scikit-dimension: pip install 'lightly-collapse[intrinsic-dimension]'"
        )
    if not isinstance(model, nn.Module):
        only = {"normalize": normalize or None, "danco": danco or None}
        _check_no_model_arguments(
            dataloader=dataloader, layers=layers, head=head, reference=reference, **only
        )
        keywords: dict[str, Any] = {"rtol": rtol, "lid_k": lid_k, "lid_size": lid_size}
        keywords |= {"blocks": blocks, "engine": engine, "address": address}
        return measure_embeddings(model, seed=seed, name=name, progress=progress, **keywords)
    check_choice("engine", engine, get_args(Engine))
    if dataloader is None:
        raise ValueError("dataloader must give the images that the model is measured on, got None")
    chosen = list(stages(model) if layers is None else layers)
    if chosen:
        find_layers(model, chosen)
    job = ModelPass(
        model,
        SketchSettings(rtol, lid_k, lid_size, seed, blocks),
        chosen,
        layers is None,
        head,
        tokens,
        channels,
        reference,
        normalize,
    )
    settings = {
        "collapse_rtol": rtol,
        "tokens": tokens,
        "lid_k": lid_k,
        "lid_size": lid_size,
        "seed": seed,
        "blocks": blocks,
    }
    if normalize:
        settings["normalize"] = True
    accuracy: dict[str, float] = {}
    if engine == "ray":
        from lightly_collapse.report.ray_inference import measured_on_cluster  # noqa: PLC0415

        if train_dataloader is not None:
            raise ValueError("train_dataloader must not be given with engine ray")
        totals = measured_on_cluster(job, dataloader, device, address, progress)
    else:
        parameter = next(model.parameters(), torch.empty(0))
        target = torch.device(device) if device is not None else parameter.device
        labelled = train_dataloader is not None
        totals, held_out = job.over(dataloader, target, labelled=labelled, progress=progress)
        if train_dataloader is not None:
            accuracy = _accuracy(job.labelled(train_dataloader, target), held_out, classifiers)
            if "knn" in accuracy:
                settings |= {f"knn_{key}": value for key, value in _KNN.items()}
    if reference is not None and not totals.has_gram_drift():
        raise ValueError("reference must give patch tokens as the model does; no layer has both")
    silent = silent_layers(chosen, totals.sketches)
    if silent and layers is not None:
        raise ValueError(f"layers must be called in forward, got {', '.join(map(repr, silent))}")
    named = (n + part for n in (OUTPUT, *chosen, EMBEDDING) for part in ("", CLS, PATCH))
    records = [totals.record(n, danco and n == OUTPUT) for n in named if n in totals.sketches]
    return CollapseReport(
        name=name or type(model).__name__,
        layers=records,
        weights=[_weight(n, s) for n, s in _weights(model).items()],
        settings=settings,
        notes=records[0].doubts(),
        accuracy=accuracy,
    )


def _accuracy(
    bank: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], classifiers: Sequence[Classifier]
) -> dict[str, float]:
    accuracy = {}
    if "knn" in classifiers:
        accuracy["knn"] = knn_accuracy(*bank, *held_out, **_KNN)  # type: ignore[arg-type]
    if "linear" in classifiers:
        accuracy["linear"] = linear_accuracy(*bank, *held_out)
    return accuracy


def _check_no_model_arguments(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} must not be given with representations, only with a model")


def stages(model: nn.Module) -> list[str]:
    """The layers to measure by default: the model's coarsest parts that hold weights.

    Children with weights, opened up while there are fewer than four (a Vision Transformer keeps
    its blocks one or two levels down) and as long as it gives no more than two dozen. Tables of
    embeddings are none: their output is the same for every image.

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
        if not isinstance(part, nn.Embedding) and any(p.ndim > 1 for p in part.parameters())
    ]


def _weights(model: nn.Module) -> dict[str, WeightSpectrum]:
    # A model without such a layer, say of fixed random features, is measured all the same.
    if not has_weights(model):
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
