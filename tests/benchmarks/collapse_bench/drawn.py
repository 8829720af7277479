"""Settings drawn at random, which nobody chose or tuned on: the unseen part, and older ones.

Some methods, each at one place (data and backbone of a drawn width), with two healthy runs and two
faults. Learning rates, batch sizes, lengths, strengths of the faults and seeds are drawn too.
"""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightly_collapse.pretrain.configs import merge
from tests.benchmarks.collapse_bench import eight_methods, five_methods
from tests.benchmarks.collapse_bench import runs as six_methods
from tests.benchmarks.collapse_bench.faults import callback_changes
from tests.benchmarks.collapse_bench.runs import (
    METHODS,
    UNSEEN,
    Run,
    data_changes,
    model_changes,
    optimizer_changes,
    word,
)


class _Draw(NamedTuple):
    prefix: str
    seed: int
    places: int
    epochs: tuple[int, int]


_DRAWS = (
    _Draw("drawn-", 2611, 12, (8, 12)),
    _Draw("drawn-again-", 2811, 14, (12, 18)),
    _Draw(UNSEEN, 2911, 6, (12, 18)),
)
_Changes = Mapping[str, Any]
_Fault = tuple[str, str, _Changes]
_WIDTHS = {"conv4": (20, 48), "resnet18": (6, 8)}


def drawn_runs() -> list[Run]:
    """The runs of all draws, each in turns over its places."""
    return [run for draw in _DRAWS for run in _runs(draw)]


def _runs(settings: _Draw) -> list[Run]:
    draw = random.Random(settings.seed)
    methods = draw.sample(METHODS, settings.places)
    by_place = [_at(draw, method, settings) for method in methods]
    return [run for turn in zip(*by_place, strict=True) for run in turn]


def _at(draw: random.Random, method: str, of: _Draw) -> list[Run]:
    data = draw.choice(("digits", "cifar10"))
    backbone = "vit_mini" if method == "IBOT" else draw.choice(("conv4", "resnet18", "vit_mini"))
    place: _Changes = {"trainer": {"max_epochs": draw.randint(*of.epochs)}}
    if backbone in _WIDTHS:
        width = draw.randint(*_WIDTHS[backbone])
        place = merge(place, model_changes(backbone={"width": width}))
    plan: list[_Fault] = [("", f"{i}", _healthy(draw)) for i in range(2)]
    plan[1:1] = draw.sample(_faults(draw, method, backbone), 2)
    found = []
    for cause, detail, changes in plan:
        words = (method, data, backbone, cause or "healthy", word(detail))
        settings = merge(place, changes)
        seed = draw.randrange(10**6)
        found.append(
            Run(of.prefix + "-".join(words), method, data, backbone, cause, detail, settings, seed)
        )
    return found


def _healthy(draw: random.Random) -> _Changes:
    rate, decay = _between(draw, 4e-4, 2.5e-3), _between(draw, 1e-5, 1e-2)
    changes = optimizer_changes(learning_rate=rate, weight_decay=decay)
    return merge(changes, data_changes(batch_size=draw.choice((64, 96, 128))))


def _faults(draw: random.Random, method: str, backbone: str) -> list[_Fault]:
    """One of every cause that the method and the backbone can have, its strength drawn."""
    rate = _between(draw, 0.05, 0.5)
    hot = _between(draw, 5.0, 30.0)
    decay = _between(draw, 100.0, 600.0)
    strong = _between(draw, 3.0, 12.0)
    noise = round(draw.uniform(0.8, 1.6), 2)
    distinct = draw.randint(2, 6)
    factor, then = round(_between(draw, 50.0, 500.0)), round(_between(draw, 80.0, 600.0))
    after = round(draw.uniform(0.3, 0.6), 2)
    found: list[_Fault] = [
        draw.choice([
            ("learning_rate", f"adamw {rate}", optimizer_changes(learning_rate=rate)),
            ("learning_rate", f"sgd {hot}", optimizer_changes(name="sgd", learning_rate=hot)),
            (
                "learning_rate", f"later x {factor}",
                callback_changes("ChangedLater", after=after, learning_rate=float(factor)),
            ),
        ]),
        draw.choice([
            ("weight_decay", f"adamw {decay}", optimizer_changes(weight_decay=decay)),
            (
                "weight_decay", f"sgd {strong}",
                optimizer_changes(name="sgd", learning_rate=0.08, weight_decay=strong),
            ),
            (
                "weight_decay", f"later {then}",
                callback_changes("ChangedLater", after=after, weight_decay=float(then)),
            ),
        ]),
        ("augmentation", f"noise {noise}", data_changes(noise=noise)),
        ("duplicates", f"{distinct}", data_changes(distinct=distinct)),
    ]  # fmt: skip
    if backbone != "vit_mini":  # which has no ReLU
        share = round(draw.uniform(0.86, 0.96), 2)
        found.append(("dead_units", f"{share}", callback_changes("DeadUnits", share=share)))
    own = [
        fault
        for part in (six_methods, eight_methods, five_methods)
        for fault in part.OWN.get(method, [])
    ]
    return found + ([draw.choice(own)] if own else [])


def _between(draw: random.Random, low: float, high: float) -> float:
    """Log-uniform, to two digits."""
    return float(f"{low * (high / low) ** draw.random():.2g}")
