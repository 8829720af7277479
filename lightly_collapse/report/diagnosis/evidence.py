"""What a diagnosis is made from: everything that is measured of a model, its data and its views."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightly_collapse._layers import find_weights
from lightly_collapse.metrics.features import feature_rows
from lightly_collapse.report.measure import measure
from lightly_collapse.report.progress import with_batch_progress
from lightly_collapse.report.records import ModelRecord
from lightly_collapse.theory.views import estimate_covariances

Views = Callable[[Sequence[Callable[[Tensor], Tensor]]], list[Tensor]]
"""From encoders to their features of two views or more of the same images, (n, q, D) each."""


@dataclass(frozen=True)
class Agreement:
    """How much the views of an image have in common, in the features of one encoder.

    Attributes:
        signal: share of the features' variance that lies between images, not between the views of
            one, in [0, 1]: tr A0 / tr (A0 + C).
        matched: share of images whose first view is closer, by the cosine of centred features, to
            the second view of its own image than to that of any other.
        chance: that share for views that have nothing in common.
    """

    signal: float
    matched: float
    chance: float


@dataclass(frozen=True)
class ViewsEvidence:
    """The views of a training, and the same without one step after the other.

    Attributes:
        pixels: agreement in pixels.
        untrained: in the features of the backbone with random weights.
        trained: in the features of the backbone.
        left_out: agreement in the better of both backbones' features, without a step, by its name.
    """

    pixels: Agreement
    untrained: Agreement
    trained: Agreement
    left_out: Mapping[str, Agreement] = field(default_factory=dict)

    @property
    def best(self) -> Agreement:
        """The agreement of pixels or features, whichever tells the images apart best."""
        return max((self.pixels, self.untrained, self.trained), key=lambda a: a.matched)


@dataclass(frozen=True)
class Training:
    """What is known of how a model was trained; None where it is not.

    Attributes:
        method: its name.
        has_projector: whether anything trainable is between representation and loss.
        optimizer: its name.
        learning_rate: at its peak, before scaling.
        weight_decay: of the optimizer.
        disabled: terms of the objective that the settings switch off.
        steps: number of optimizer steps that the readings cover.
        stronger_steps: the random steps of its views that are stronger than published ones; None
            where they are not known.
        diverged: what is known of its end, where its loss was no longer finite; else empty.
    """

    method: str | None = None
    has_projector: bool | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    disabled: tuple[str, ...] = ()
    steps: int | None = None
    stronger_steps: tuple[str, ...] | None = None
    diverged: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured.

    Attributes:
        report: of the model; the output's numbers have 95 % intervals.
        untrained: of the same architecture with random weights, on the same images.
        variation: variance of the output about its mean, over its mean square.
        untrained_variation: that of random weights.
        dead: share of channels that were zero for every image, by the name of the ReLU.
        norm_ratios: norm of each weight over that of its random initialisation.
        training: what is known of the training.
        images: number of training images looked at; None without.
        distinct: how many of them differ.
        views: of the training; None where they are not known.
        history: readings of the training, `collapse.csv`.
        problems: what could not be measured, and why.
    """

    report: ModelRecord
    untrained: ModelRecord
    variation: float
    untrained_variation: float
    dead: Mapping[str, float]
    norm_ratios: Mapping[str, float]
    training: Training = Training()
    images: int | None = None
    distinct: int | None = None
    views: ViewsEvidence | None = None
    history: Sequence[Mapping[str, float]] = ()
    problems: tuple[str, ...] = ()


def model_evidence(
    model: nn.Module,
    batches: Iterable[Any],
    untrained: nn.Module | None = None,
    head: Callable[[Tensor], Tensor] | None = None,
    **settings: Any,
) -> Evidence:
    """Measure a model, and the same architecture with random weights.

    Args:
        model: from images to representations.
        batches: of images, as `measure` takes them; passed over twice.
        untrained: the architecture with random weights; made from the model where not given, by the
            `reset_parameters` of its layers.
        head: from representations to what the loss acts on.
        settings: of `measure`.

    Returns:
        The evidence of the model alone.

    Raises:
        ValueError: as `measure`.
    """
    untrained = untrained_copy(model) if untrained is None else untrained
    report, rows, dead = _measured(model, batches, head=head, **settings)
    other, other_rows, _ = _measured(untrained, batches, **{**settings, "blocks": 1})
    problems = []
    dropped = int(report.output.scalars.get("dropped") or 0)
    if dropped:
        problems.append(f"{dropped} rows of the output held NaN or inf")
    return Evidence(
        report=report,
        untrained=other,
        variation=_variation(rows),
        untrained_variation=_variation(other_rows),
        dead=dead,
        norm_ratios=_norm_ratios(model, untrained),
        problems=tuple(problems),
    )


def _measured(
    model: nn.Module, batches: Iterable[Any], **settings: Any
) -> tuple[ModelRecord, Tensor, dict[str, float]]:
    rows: list[Tensor] = []
    highest: dict[str, Tensor] = {}

    def output(module: nn.Module, _: Any, result: Any) -> None:
        rows.append(feature_rows(result, layer=module).float().cpu())

    def relu(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def see(module: nn.Module, _: Any, result: Tensor) -> None:
            # One ReLU may be called several times in a block, with other channels each time.
            calls[name] = calls.get(name, 0) + 1
            key = name if calls[name] == 1 else f"{name} ({calls[name]})"
            if result.ndim < 2:
                return
            channels = result.detach().movedim(1, 0).flatten(1).amax(dim=1)
            known = highest.get(key)
            if known is None or known.shape != channels.shape:
                highest[key] = channels
            else:
                highest[key] = torch.maximum(known, channels)

        return see

    def begin(*_: Any) -> None:
        calls.clear()

    calls: dict[str, int] = {}
    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(output)]
    hooks += [
        module.register_forward_hook(relu(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        report = measure(model, batches, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    features = torch.cat(rows)
    dead = {name: float((value <= 0).float().mean()) for name, value in highest.items()}
    return report, features, dead


def _variation(rows: Tensor) -> float:
    """Variance about the mean over the mean square; nan where no row is finite."""
    x = rows[rows.isfinite().all(dim=1)].double()
    square = float(x.square().mean()) if x.numel() else math.nan
    return float((x - x.mean(dim=0)).square().mean()) / square if square > 0 else math.nan


def untrained_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with the random weights that its layers' `reset_parameters` draw."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return other


def _norm_ratios(model: nn.Module, untrained: nn.Module) -> dict[str, float]:
    if not any(p.ndim > 1 for p in model.parameters()):
        return {}
    initial = {w.name: float(w.tensor().detach().double().norm()) for w in find_weights(untrained)}
    found = {}
    for w in find_weights(model):
        start = initial.get(w.name, 0.0)
        if start > 0:
            found[w.name] = float(w.tensor().detach().double().norm()) / start
    return found


def agreement(views: Tensor) -> Agreement:
    """How much the views of an image have in common.

    Args:
        views: (n, q, D) features of q >= 2 views of n >= 2 images; what is not finite counts as 0.

    Examples:
        >>> x = torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(0))
        >>> agreement(x.expand(-1, 2, -1))
        Agreement(signal=1.0, matched=1.0, chance=0.015625)
    """
    views = views.double().nan_to_num(0.0, 0.0, 0.0)
    covariances = estimate_covariances(views)
    between, within = (float(c.trace()) for c in (covariances.data, covariances.augmentation))
    total = between + within
    first, second = (normalize(v - v.mean(dim=0), dim=1) for v in (views[:, 0], views[:, 1]))
    similarity = first @ second.T
    own = similarity.diagonal()
    # Ties, as of constant features, are no match.
    matched = (similarity >= own[:, None]).sum(dim=1) == 1
    return Agreement(
        signal=min(max(between / total, 0.0), 1.0) if total > 0 else 0.0,
        matched=float(matched.double().mean()),
        chance=1 / len(views),
    )


def views_evidence(
    views: Views,
    left_out: Mapping[str, Views],
    model: Callable[[Tensor], Tensor],
    untrained: Callable[[Tensor], Tensor],
    progress: bool = False,
) -> ViewsEvidence:
    """Measure the views of a training with all random steps and without each.

    Args:
        views: the views.
        left_out: the views without a step, by its name.
        model: the backbone.
        untrained: the backbone with random weights.
        progress: show a progress bar of the steps left out on standard error.

    Returns:
        The agreements.
    """
    modules = [m for e in (model, untrained) if isinstance(e, nn.Module) for m in e.modules()]
    modes = [(module, module.training) for module in modules]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            pixels, trained, random = map(agreement, views([_pixels, model, untrained]))
            without = {}
            for name, other in with_batch_progress(left_out.items(), progress, "augmentations"):
                found = map(agreement, other([model, untrained]))
                without[name] = max(found, key=lambda a: a.matched)
    finally:
        for module, mode in modes:
            module.training = mode
    return ViewsEvidence(pixels, random, trained, without)


def _pixels(images: Tensor) -> Tensor:
    side = min(8, *images.shape[-2:])
    return nn.functional.adaptive_avg_pool2d(images, side).flatten(1)


def distinct_images(images: Iterable[Any]) -> tuple[int, int]:
    """How many images there are, and how many of them differ in a byte.

    Args:
        images: tensors, PIL images or arrays, or tuples that begin with one.

    Examples:
        >>> distinct_images([torch.zeros(3), torch.ones(3), torch.zeros(3)])
        (3, 2)
    """
    seen: set[bytes] = set()
    count = 0
    for item in images:
        image = item[0] if isinstance(item, (tuple, list)) else item
        count += 1
        seen.add(image.numpy().tobytes() if isinstance(image, Tensor) else image.tobytes())
    return count, len(seen)
