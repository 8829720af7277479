"""What to change: remedies by cause."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightly_collapse.report.diagnosis.causes import Cause
from lightly_collapse.report.diagnosis.evidence import Training


@dataclass(frozen=True)
class Remedy:
    """Something to change.

    Attributes:
        cause: name of the cause it is against; empty for one that is against collapse as such.
        text: what to do.
        settings: the same as settings of `pretrain`, to be laid over a run's; empty where it is no
            setting.
    """

    cause: str
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def find_remedies(
    causes: Sequence[Cause], training: Training, steps: Mapping[str, Mapping[str, Any]]
) -> list[Remedy]:
    """Remedies against the causes that were found, in the order of the causes.

    Args:
        causes: as `find_causes` gives them.
        training: what is known of the training.
        steps: settings that switch an augmentation off, by its name.

    Returns:
        The remedies; those against collapse as such last. None where no cause was found.
    """
    found = [cause for cause in causes if cause.found]
    remedies = [remedy for cause in found for remedy in _against(cause, training, steps)]
    if any(c.name not in ("samples", "duplicates", "augmentation") for c in found):
        remedies += _general()
    return remedies


def _model(**settings: Any) -> dict[str, Any]:
    return {"model": {"init_args": settings}}


def _against(
    cause: Cause, training: Training, steps: Mapping[str, Mapping[str, Any]]
) -> list[Remedy]:
    rate = training.learning_rate
    lower = [
        Remedy(cause.name, f"Lower the learning rate to {r:g}.", _optimizer(learning_rate=r))
        for r in ([] if rate is None else [rate / 10, rate / 100])
    ] or [Remedy(cause.name, "Lower the learning rate tenfold, and again.")]
    decay = min((training.weight_decay or 0.1) / 1000, 1e-4)
    remedies: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "duplicates": [(f"Train on distinct images: only {cause.detail} differ.", {})],
        "projector": _projector(cause, training),
        "weight_decay": [
            (f"Lower the weight decay to {decay:g}.", _optimizer(weight_decay=decay)),
        ],
        "dead_units": [
            (f"Initialise the layer of {cause.detail} anew: a dead unit has no gradient.", {})
        ],
        "augmentation": [
            (
                "Weaken the augmentations"
                + (f": {cause.detail} takes most." if cause.detail else "."),
                dict(steps.get(cause.detail, {})),
            )
        ],
        "objective": [
            (
                "Restore what keeps a constant from being best: "
                + (cause.detail or "predictor and stop-gradient, variance term, or centring")
                + ".",
                {},
            )
        ],
        "samples": [("Measure more images.", {})],
    }
    found = [Remedy(cause.name, *parts) for parts in remedies.get(cause.name, [])]
    return found + (lower if cause.name in ("learning_rate", "dead_units") else [])


def _projector(cause: Cause, training: Training) -> list[tuple[str, dict[str, Any]]]:
    if cause.detail != "missing":
        return [("Widen the projector's output to that of the representation.", {})]
    settings = _model(projector="mlp") if training.method == "SimCLR" else {}
    return [
        ("Put a projector between representation and loss.", settings),
        ("Or let the loss act on a part of the representation: DirectCLR.", {}),
    ]


def _optimizer(**settings: Any) -> dict[str, Any]:
    return _model(optimizer=settings)


def _general() -> list[Remedy]:
    return [
        Remedy(
            "",
            "Variance and covariance regularization of the representation.",
            _model(variance_covariance={"variance_weight": 1.0, "covariance_weight": 0.04}),
        ),
        Remedy("", "LDReg.", _model(ldreg={"weight": 0.1, "k": 20})),
        Remedy("", "Orthogonality regularization.", _model(orthogonality={"weight": 1e-2})),
    ]
