"""Which runs the bench has: every one with its settings, its cause and the part that it is in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

from lightly_collapse.pretrain.configs import merge

Part = Literal["development", "unseen"]

UNSEEN = "unseen-"
"""Names of the runs of the unseen part begin with this."""


def part_of(name: str) -> Part:
    """The part that a run is in, by its name.

    The runs of eight and of five methods and two draws were unseen once; alarm, diagnosis and
    choice were revised after a look at them, so they are development data now.
    """
    return "unseen" if name.startswith(UNSEEN) else "development"


CAUSES = {
    "objective": "the objective lacks the part that keeps it from a constant",
    "projector": "no projector, or one of low rank",
    "learning_rate": "the learning rate is far too high",
    "weight_decay": "the weight decay is far too high",
    "augmentation": "the views have hardly anything in common",
    "dead_units": "most ReLUs of the last block never open",
    "duplicates": "the training images are copies of a few",
}
"""What a run that collapses suffers from."""

EPOCHS = 8
FAULTS = "tests.benchmarks.collapse_bench.faults."
_DATA = "tests.benchmarks.collapse_bench.data."
_CIFAR10_FILE = "cifar10.pt"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of its folder.
        method: the method's name, without its fault.
        data: `digits` or `cifar10`.
        backbone: `conv4`, `resnet18` or `vit_mini`.
        cause: one of `CAUSES`; empty for a run that is to stay healthy.
        detail: which form of the cause.
        changes: settings laid over those of method, data and backbone.
        seed: of everything random.
    """

    name: str
    method: str
    data: str
    backbone: str
    cause: str = ""
    detail: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def part(self) -> Part:
        """The part that it is in."""
        return part_of(self.name)

    def config(self, cifar10: str) -> dict[str, Any]:
        """The configuration of `pretrain`, without output and callbacks."""
        config = merge(_base(self, cifar10), dict(self.changes))
        config["seed_everything"] = self.seed
        return config


_METHODS: dict[str, dict[str, Any]] = {
    "SimCLR": {"temperature": 0.2, "hidden_dim": 128, "output_dim": 64},
    "MoCo": {"hidden_dim": 128, "output_dim": 64, "queue_size": 512, "start_momentum": 0.96},
    "BYOL": {"hidden_dim": 128, "output_dim": 64, "start_momentum": 0.96},
    "SimSiam": {"hidden_dim": 128, "prediction_dim": 32, "output_dim": 128},
    "DINO": {
        "hidden_dim": 128,
        "bottleneck_dim": 64,
        "output_dim": 256,
        "start_momentum": 0.96,
        "frozen_epochs": 0,
    },
    "VICReg": {"hidden_dim": 256, "output_dim": 128},
    "BarlowTwins": {"hidden_dim": 192, "output_dim": 96},
    "DCL": {"temperature": 0.15, "hidden_dim": 96, "output_dim": 48},
    "NNCLR": {
        "temperature": 0.15,
        "hidden_dim": 128,
        "output_dim": 48,
        "prediction_dim": 128,
        "queue_size": 512,
    },
    "MMCR": {"hidden_dim": 192, "output_dim": 48, "start_momentum": 0.97},
    "TiCo": {"hidden_dim": 192, "output_dim": 64, "start_momentum": 0.97},
    "MoCoV3": {"hidden_dim": 192, "output_dim": 48, "temperature": 0.3, "start_momentum": 0.97},
    "NNBYOL": {"hidden_dim": 192, "output_dim": 48, "queue_size": 512, "start_momentum": 0.97},
    "FroSSL": {"hidden_dim": 192, "output_dim": 48},
    "SwAV": {"hidden_dim": 160, "output_dim": 56, "prototypes": 80},
    "WMSE": {"hidden_dim": 160, "output_dim": 16, "whitening_size": 32},
    "LeJEPA": {"hidden_dim": 160, "output_dim": 40, "directions": 256},
    "IBOT": {
        "hidden_dim": 160,
        "bottleneck_dim": 56,
        "output_dim": 192,
        "start_momentum": 0.97,
        "frozen_epochs": 0,
    },
    "DirectCLR": {"loss_dim": 20, "temperature": 0.15},
}
_BACKBONES: dict[str, dict[str, Any]] = {
    "conv4": {"name": "conv4", "width": 32},
    "resnet18": {"name": "resnet18", "stem": "cifar", "width": 8},
    "vit_mini": {"name": "vit_mini", "image_size": 16, "patch_size": 4},
}
# Digits must neither be mirrored nor cropped far: either would change what digit it is.
_VIEWS: dict[str, dict[str, Any]] = {
    "digits": {"min_scale": 0.6, "flip": 0.0, "jitter": 0.5, "gray": 0.0, "blur": [0.0, 0.0]},
    "cifar10": {"min_scale": 0.3, "jitter": 0.5, "blur": [0.0, 0.0]},
}


METHODS = tuple(_METHODS)
"""The methods of the bench."""


def _base(run: Run, cifar10: str) -> dict[str, Any]:
    digits = run.data == "digits"
    data: dict[str, Any] = {"batch_size": 64, "views": _VIEWS[run.data]}
    data |= {"image_size": 16} if digits else {"path": cifar10}
    return {
        "model": {
            "class_path": run.method,
            "init_args": {
                **_METHODS[run.method],
                "backbone": _BACKBONES[run.backbone],
                "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4},
            },
        },
        "data": {
            "class_path": _DATA + ("BenchDigits" if digits else "BenchCIFAR10"),
            "init_args": data,
        },
        "trainer": {"max_epochs": EPOCHS},
    }


def model_changes(class_path: str | None = None, **init_args: Any) -> dict[str, Any]:
    changes: dict[str, Any] = {"init_args": init_args}
    if class_path is not None:
        changes["class_path"] = FAULTS + class_path
    return {"model": changes}


def optimizer_changes(**settings: Any) -> dict[str, Any]:
    return model_changes(optimizer=settings)


def data_changes(**init_args: Any) -> dict[str, Any]:
    return {"data": {"init_args": init_args}}


# Views with next to nothing in common, by noise, by crops, by colours.
_STRONG = {
    "noise": data_changes(noise=1.0),
    "crops": data_changes(views={"min_scale": 0.01, "jitter": 1.0, "gray": 0.5}),
    "all": data_changes(noise=0.5, views={"min_scale": 0.02, "jitter": 1.0}),
}
_COMMON: dict[str, list[tuple[str, Mapping[str, Any]]]] = {
    "learning_rate": [
        ("sgd", optimizer_changes(name="sgd", learning_rate=20.0)),
        ("adamw", optimizer_changes(learning_rate=0.3)),
    ],
    "weight_decay": [
        ("adamw", optimizer_changes(weight_decay=500.0)),
        ("sgd", optimizer_changes(name="sgd", learning_rate=0.1, weight_decay=5.0)),
    ],
    "augmentation": [*_STRONG.items()],
    "duplicates": [("4", data_changes(distinct=4)), ("2", data_changes(distinct=2))],
    "dead_units": [
        (
            "95 %",
            {
                "trainer": {
                    "callbacks": [
                        {"class_path": FAULTS + "DeadUnits", "init_args": {"share": 0.95}}
                    ]
                }
            },
        )
    ],
}

OWN: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {
    "SimCLR": [
        ("projector", "none", model_changes(projector="none")),
        ("projector", "output of 2", model_changes(output_dim=2)),
    ],
    "MoCo": [("projector", "output of 2", model_changes(output_dim=2))],
    "BYOL": [
        ("objective", "no predictor", model_changes("BYOLWithoutPredictor")),
        ("objective", "no stop-gradient", model_changes("BYOLWithoutStopGradient")),
    ],
    "SimSiam": [
        ("objective", "no stop-gradient", model_changes("SimSiamWithoutStopGradient")),
        ("objective", "no predictor", model_changes("SimSiamWithoutPredictor")),
    ],
    "VICReg": [
        ("objective", "no variance term", model_changes(variance=0.0)),
        ("projector", "output of 2", model_changes(output_dim=2)),
    ],
    "DINO": [
        ("objective", "no centring", model_changes("DINOWithFault", centred=False)),
        ("objective", "teacher too cold", model_changes("DINOWithFault", temperature=1e-3)),
    ],
}
_PLACES = (
    ("digits", "conv4"),
    ("digits", "resnet18"),
    ("digits", "vit_mini"),
    ("cifar10", "conv4"),
    ("cifar10", "resnet18"),
    ("cifar10", "vit_mini"),
)
_HEALTHY: list[tuple[str, Mapping[str, Any]]] = [
    ("", {}),
    ("low rate", optimizer_changes(learning_rate=3e-4)),
    ("high rate", optimizer_changes(learning_rate=3e-3)),
    ("large batch", data_changes(batch_size=128)),
    ("small batch", data_changes(batch_size=32)),
    ("sgd", optimizer_changes(name="sgd", learning_rate=0.03, weight_decay=5e-4)),
]
_SHIFTS = {"SimCLR": 0, "BYOL": 1, "VICReg": 2, "MoCo": 0, "SimSiam": 1, "DINO": 2}
"""Where each method begins in the lists of places and settings."""
_WIDE: dict[str, Mapping[str, Any]] = {
    "conv4": model_changes(backbone={"width": 48}),
    "resnet18": model_changes(backbone={"width": 6}),
    "vit_mini": model_changes(backbone={"patch_size": 8}),
}


def first_runs() -> list[Run]:
    """The runs of the first six methods, in turns over them."""
    by_method = [
        [*_healthy(method, shift), *_collapsing(method, shift)] for method, shift in _SHIFTS.items()
    ]
    return [run for turn in zip_longest(*by_method) for run in turn if run is not None]


def _healthy(method: str, shift: int) -> Iterator[Run]:
    """At every place the plain settings, and one changed setting; another one for each method."""
    for j, (data, backbone) in enumerate(_PLACES):
        place = f"{method}-{data}-{backbone}"
        yield Run(f"{place}-healthy", method, data, backbone)
        detail, changes = _HEALTHY[1 + (shift + j) % (len(_HEALTHY) - 1)]
        if backbone == "vit_mini" and detail == "sgd":
            detail, changes = "other width", _WIDE[backbone]
        name = f"{place}-healthy-{word(detail)}"
        yield Run(name, method, data, backbone, "", detail, changes, seed=1)


def _collapsing(method: str, shift: int) -> Iterator[Run]:
    """Each cause at two places or more, in turns over places and forms."""
    for n, (cause, detail, changes) in enumerate(OWN[method]):
        for j in range(3):
            yield _at(method, cause, detail, changes, (shift + 2 * j + n) % len(_PLACES), j)
    for n, (cause, forms) in enumerate(_COMMON.items()):
        for j in range(2):
            detail, changes = forms[(j + shift) % len(forms)]
            at = (shift + n + 3 * j) % len(_PLACES)
            if cause == "dead_units" and _PLACES[at][1] == "vit_mini":  # has no ReLU
                at = (at + 1) % len(_PLACES)
            yield _at(method, cause, detail, changes, at, j)


def _at(
    method: str,
    cause: str,
    detail: str,
    changes: Mapping[str, Any],
    place: int,
    seed: int,
) -> Run:
    data, backbone = _PLACES[place]
    name = f"{method}-{data}-{backbone}-{cause}-{word(detail)}"
    return Run(name, method, data, backbone, cause, detail, changes, seed)


def word(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
