"""Runs of eight methods, with widths, learning rates, lengths and seeds of their own."""

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
_METHODS = ("BarlowTwins", "DCL", "NNCLR", "MMCR", "TiCo", "MoCoV3", "NNBYOL", "FroSSL")
_ALL: dict[str, Any] = {"trainer": {"max_epochs": 9}}
_BACKBONES: dict[str, list[_Changes]] = {
    "conv4": [model_changes(backbone={"width": 24}), model_changes(backbone={"width": 40})],
    "resnet18": [model_changes(backbone={"width": 10})],
    "vit_mini": [{}],
}
_SECOND = (("digits", "vit_mini"), ("cifar10", "conv4"), ("digits", "resnet18"))
"""The second place of the methods, in turns; the first is digits with Conv-4."""
_HEALTHY: list[tuple[str, _Changes]] = [
    ("2e-3", optimizer_changes(learning_rate=2e-3, weight_decay=1e-3)),
    ("6e-4", optimizer_changes(learning_rate=6e-4)),
    ("batch of 96", data_changes(batch_size=96)),
]
_COMMON: list[tuple[str, list[tuple[str, _Changes]]]] = [
    (
        "weight_decay",
        [
            ("adamw 300", optimizer_changes(weight_decay=300.0)),
            ("sgd 8", optimizer_changes(name="sgd", learning_rate=0.05, weight_decay=8.0)),
        ],
    ),
    (
        "learning_rate",
        [
            ("adamw 0.2", optimizer_changes(learning_rate=0.2)),
            ("sgd 12", optimizer_changes(name="sgd", learning_rate=12.0)),
        ],
    ),
    (
        "dead_units",
        [
            ("92 %", callback_changes("DeadUnits", share=0.92)),
        ],
    ),
    ("duplicates", [("3", data_changes(distinct=3)), ("5", data_changes(distinct=5))]),
    (
        "augmentation",
        [
            ("noise", data_changes(noise=1.2)),
            ("all", data_changes(noise=0.6, views={"min_scale": 0.03, "jitter": 1.0})),
        ],
    ),
]
_NARROW = ("projector", "output of 2", model_changes(output_dim=2))
OWN: dict[str, list[tuple[str, str, _Changes]]] = {
    "BarlowTwins": [
        ("objective", "no redundancy term", model_changes(redundancy=0.0)),
        _NARROW,
    ],
    "DCL": [_NARROW],
    "NNCLR": [_NARROW],
    "MMCR": [_NARROW],
    "TiCo": [("objective", "no covariance term", model_changes(covariance=0.0)), _NARROW],
    "MoCoV3": [_NARROW],
    "NNBYOL": [("objective", "no predictor", model_changes("NNBYOLWithoutPredictor"))],
    "FroSSL": [_NARROW],
}


def eight_methods_runs() -> list[Run]:
    """The runs of these methods, in turns over them."""
    by_method = [[*_of(method, i)] for i, method in enumerate(_METHODS)]
    return [run for turn in zip_longest(*by_method) for run in turn if run is not None]


def _of(method: str, shift: int) -> Iterator[Run]:
    """Two healthy runs at each of two places, between them the faults."""
    first, second = ("digits", "conv4"), _SECOND[shift % len(_SECOND)]
    width = _BACKBONES["conv4"][shift % 2]
    common = [_COMMON[(j + 2 * shift) % len(_COMMON)] for j in range(len(_COMMON))]
    faults = [*OWN[method]]
    for j, (cause, forms) in enumerate(common):
        faults.append((cause, *forms[(j + shift) % len(forms)]))
    # A Vision Transformer has no ReLU.
    rest = [f for f in faults[3:] if (f[0], second[1]) != ("dead_units", "vit_mini")]
    plan = [
        (first, "", *_HEALTHY[0]),
        (first, "", *_HEALTHY[1 + shift % 2]),
        *((first, *fault) for fault in faults[:3]),
        (second, "", "", {}),
        (second, "", *_HEALTHY[1 + (shift + 1) % 2]),
        *((second, *fault) for fault in rest[:2]),
    ]
    for k, ((data, backbone), cause, detail, changes) in enumerate(plan):
        wide = width if backbone == "conv4" else _BACKBONES[backbone][0]
        name = "-".join(filter(None, (method, data, backbone, cause or "healthy", word(detail))))
        yield Run(
            name, method, data, backbone, cause, detail,
            merge(merge(_ALL, wide), changes), seed=20 + 9 * shift + k,
        )  # fmt: skip
