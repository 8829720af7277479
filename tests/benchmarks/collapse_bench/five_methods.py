"""Runs of five methods, with widths, learning rates, lengths and seeds of their own.

Some faults come in the middle of a training that went well, as after a mistaken restart.
"""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from lightly_collapse.pretrain.configs import merge
from tests.benchmarks.collapse_bench.faults import callback_changes
from tests.benchmarks.collapse_bench.runs import (
    Run,
    data_changes,
    model_changes,
    optimizer_changes,
    word,
)

_Changes = Mapping[str, Any]
_METHODS = ("SwAV", "WMSE", "LeJEPA", "IBOT", "DirectCLR")
_Fault = tuple[str, str, _Changes]
_ALL: dict[str, Any] = {"trainer": {"max_epochs": 10}}
_WIDTHS: dict[str, tuple[int, int]] = {"conv4": (36, 44), "resnet18": (7, 8)}
_HEALTHY: list[tuple[str, _Changes]] = [
    ("1.5e-3", optimizer_changes(learning_rate=1.5e-3)),
    ("5e-4", optimizer_changes(learning_rate=5e-4, weight_decay=1e-3)),
    ("batch of 96", data_changes(batch_size=96)),
]


_COMMON: list[tuple[str, list[tuple[str, _Changes]]]] = [
    (
        "weight_decay",
        [
            ("adamw 200", optimizer_changes(weight_decay=200.0)),
            ("sgd 4", optimizer_changes(name="sgd", learning_rate=0.08, weight_decay=4.0)),
        ],
    ),
    (
        "learning_rate",
        [
            ("adamw 0.1", optimizer_changes(learning_rate=0.1)),
            ("sgd 6", optimizer_changes(name="sgd", learning_rate=6.0)),
        ],
    ),
    (
        "dead_units",
        [
            ("90 %", callback_changes("DeadUnits", share=0.9)),
            ("94 %", callback_changes("DeadUnits", share=0.94)),
        ],
    ),
    (
        "learning_rate",
        [
            ("later x 100", callback_changes("ChangedLater", after=0.5, learning_rate=100.0)),
            ("later x 300", callback_changes("ChangedLater", after=0.4, learning_rate=300.0)),
        ],
    ),
    ("duplicates", [("2", data_changes(distinct=2)), ("6", data_changes(distinct=6))]),
    (
        "weight_decay",
        [
            ("later 100", callback_changes("ChangedLater", after=0.4, weight_decay=100.0)),
            ("later 400", callback_changes("ChangedLater", after=0.5, weight_decay=400.0)),
        ],
    ),
    (
        "augmentation",
        [
            ("noise", data_changes(noise=0.9)),
            ("crops", data_changes(views={"min_scale": 0.02, "jitter": 1.0, "gray": 0.4})),
        ],
    ),
]
OWN: dict[str, list[_Fault]] = {
    "SwAV": [("projector", "output of 3", model_changes(output_dim=3))],
    "WMSE": [("projector", "output of 3", model_changes(output_dim=3))],
    "LeJEPA": [
        ("objective", "no SIGReg", model_changes(sigreg=0.0)),
        ("projector", "output of 3", model_changes(output_dim=3)),
    ],
    "IBOT": [("objective", "no centring", model_changes("IBOTWithoutCentring"))],
    "DirectCLR": [("projector", "two entries", model_changes(loss_dim=2))],
}
_PLACES = {
    "SwAV": (("digits", "conv4"), ("cifar10", "resnet18")),
    "WMSE": (("digits", "resnet18"), ("cifar10", "conv4")),
    "LeJEPA": (("digits", "conv4"), ("digits", "vit_mini")),
    "IBOT": (("digits", "vit_mini"), ("cifar10", "vit_mini")),
    "DirectCLR": (("digits", "conv4"), ("cifar10", "resnet18")),
}


def five_methods_runs() -> list[Run]:
    """The runs of these methods, in turns over them."""
    by_method = [[*_of(method, i)] for i, method in enumerate(_METHODS)]
    return [run for turn in zip_longest(*by_method) for run in turn if run is not None]


def _of(method: str, shift: int) -> Iterator[Run]:
    """Two or three healthy runs at each of two places, and each fault at one of them."""
    first, second = _PLACES[method]
    faults = [*OWN[method]]
    for j, (cause, forms) in enumerate(_COMMON):
        # A Vision Transformer has no ReLU.
        if not (cause == "dead_units" and "vit_mini" in (first[1], second[1])):
            faults.append((cause, *forms[(j + shift) % len(forms)]))
    plan: list[tuple[tuple[str, str], _Fault]] = [
        (first, ("", *_HEALTHY[0])),
        (second, ("", "", {})),
        *zip((first, second) * len(faults), faults, strict=False),
        (first, ("", *_HEALTHY[1 + shift % 2])),
        (second, ("", *_HEALTHY[1 + (shift + 1) % 2])),
    ]
    for k, ((data, backbone), (cause, detail, changes)) in enumerate(plan):
        wide: _Changes = {}
        if backbone in _WIDTHS:
            wide = model_changes(backbone={"width": _WIDTHS[backbone][shift % 2]})
        name = "-".join(filter(None, (method, data, backbone, cause or "healthy", word(detail))))
        yield Run(
            name, method, data, backbone, cause, detail,
            merge(merge(_ALL, wide), changes), seed=100 + 20 * shift + k,
        )  # fmt: skip
