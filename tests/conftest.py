"""Hypothesis profiles and golden values shared by the whole suite."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

# Two workers on two cores, and their subprocesses, must not take two threads each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# The default profile gives the same verdict for the same code; `--hypothesis-profile=explore`
# looks further, with new examples at every run.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore",
    deadline=None,
    max_examples=500,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Run files in the order of their names: by default xdist has those of few tests run last, and
    few tests are the longest, so that one process works alone at the end."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Mapping[str, Tensor]]:
    """Read a file of values that the papers' official code produced, in float64."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(Path(__file__).parent / "fixtures" / f"{name}.npz") as values:
            return {key: torch.as_tensor(value).double() for key, value in values.items()}

    return load
