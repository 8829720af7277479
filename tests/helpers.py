"""Matrices with known properties, made by numpy, and bad inputs, for all test files."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31 - 1)

# What no function that takes (samples, dimensions) may accept.
BAD_FEATURES = [
    pytest.param(torch.randn(8), id="1-D"),
    pytest.param(torch.randn(2, 8, 4), id="3-D"),
    pytest.param(torch.randn(0, 4), id="no row"),
    pytest.param(torch.randn(8, 0), id="no column"),
    pytest.param(torch.randn(8, 4).index_fill(0, torch.tensor([3]), torch.nan), id="NaN"),
    pytest.param(torch.randn(8, 4).index_fill(1, torch.tensor([3]), torch.inf), id="inf"),
    pytest.param(torch.randn(8, 4).index_fill(1, torch.tensor([0]), -torch.inf), id="-inf"),
]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal entries."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def leaf(x: Tensor) -> Tensor:
    """A copy of `x` that collects a gradient."""
    return x.detach().clone().requires_grad_()


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A (rows, columns) matrix, the vectors along its smaller side orthonormal."""
    tall = np.random.default_rng(seed).standard_normal((max(rows, columns), min(rows, columns)))
    q = np.linalg.qr(tall)[0]
    return torch.from_numpy(q if rows >= columns else np.ascontiguousarray(q.T))


def with_spectrum(s: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A (rows, columns) float64 matrix of which `s` are the singular values."""
    left = orthonormal(rows, len(s), seed)
    right = orthonormal(len(s), columns, seed + 1)
    return left * s.double() @ right


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    """The gradient of a loss with respect to one leaf."""
    return torch.autograd.grad(loss, x)[0]
