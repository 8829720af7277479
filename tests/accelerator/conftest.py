"""Tests that need a GPU. All of them skip where there is none."""

import pytest
import torch


@pytest.fixture
def gpu():
    """The first CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")
