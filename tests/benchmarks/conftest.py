"""Ratios of interleaved measurements; run with `pytest tests/benchmarks -m benchmark -s`."""

import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Functions = Mapping[str, Callable[[], object]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker("benchmark")


@pytest.fixture
def fastest() -> Callable[..., dict[str, float]]:
    """The least seconds of each function, in turns, so that all meet the same machine."""

    def measure(functions: Functions, rounds: int = 7) -> dict[str, float]:
        for function in functions.values():
            function()
        best = dict.fromkeys(functions, float("inf"))
        for _ in range(rounds):
            for name, function in functions.items():
                gc.collect()
                start = time.perf_counter()
                function()
                best[name] = min(best[name], time.perf_counter() - start)
        print("\n" + ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in best.items()))
        return best

    return measure
