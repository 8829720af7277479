import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightly_collapse.loss import DirectCLRLoss
from tests.helpers import BAD_FEATURES, dtypes, gradient, leaf, normal, seeds


def plain(r0: np.ndarray, r1: np.ndarray, dim: int, temperature: float) -> float:
    """The formula, one sample at a time."""
    z0, z1 = r0[:, :dim], r1[:, :dim]
    z0 = z0 / np.linalg.norm(z0, axis=1, keepdims=True)
    z1 = z1 / np.linalg.norm(z1, axis=1, keepdims=True)
    total = 0.0
    for a, b in ((z0, z1), (z1, z0)):
        for i in range(len(a)):
            scores = np.exp(b @ a[i] / temperature)
            total -= math.log(scores[i] / scores.sum()) / len(a)
    return total / 2


def test_golden_value_and_gradients(golden) -> None:  # type: ignore[no-untyped-def]
    values = golden("directclr")
    r0, r1 = leaf(values["r1"]), leaf(values["r2"])
    loss = DirectCLRLoss(int(values["dim"]), float(values["temperature"]))(r0, r1)
    torch.testing.assert_close(loss, values["loss"], rtol=1e-6, atol=0)
    for slope, name in zip(
        torch.autograd.grad(loss, (r0, r1)), ("grad_r1", "grad_r2"), strict=True
    ):
        exact = values[name]
        torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize("dim", [1, 5, 12])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_value_is_the_formula(dim: int, temperature: float) -> None:
    r0, r1 = normal(9, 12), normal(9, 12, seed=1)
    loss = DirectCLRLoss(dim, temperature)(r0, r1)
    assert loss.item() == pytest.approx(plain(r0.numpy(), r1.numpy(), dim, temperature), rel=1e-10)


def test_gradcheck() -> None:
    loss_fn = DirectCLRLoss(loss_dim=4, temperature=0.5)
    r0, r1 = leaf(normal(5, 6)), leaf(normal(5, 6, seed=1))
    assert torch.autograd.gradcheck(loss_fn, (r0, r1))


def test_acts_on_the_first_entries_only() -> None:
    r0, r1 = leaf(normal(8, 10)), normal(8, 10, seed=1)
    loss_fn = DirectCLRLoss(loss_dim=4)
    slope = gradient(loss_fn(r0, r1), r0)
    assert (slope[:, 4:] == 0).all()
    assert (slope[:, :4] != 0).any()
    other = torch.cat([r0[:, :4].detach(), normal(8, 6, seed=2)], dim=1)
    assert loss_fn(other, r1) == loss_fn(r0, r1)


def test_negatives_are_the_other_views_samples() -> None:
    # Orthogonal pairs at temperature 1: a positive of score e against n - 1 of score 1, where the
    # NT-Xent form would count 2 (n - 1).
    n = 6
    z = torch.eye(n, dtype=torch.float64)
    loss = DirectCLRLoss(loss_dim=n, temperature=1.0)(z, z)
    assert loss.item() == pytest.approx(math.log(1 + (n - 1) / math.e))


def test_symmetric_in_the_views_and_alike_for_one_order_of_samples() -> None:
    r0, r1 = normal(8, 10), normal(8, 10, seed=1)
    loss_fn = DirectCLRLoss(loss_dim=5)
    torch.testing.assert_close(loss_fn(r0, r1), loss_fn(r1, r0))
    torch.testing.assert_close(loss_fn(r0, r1), loss_fn(r0.flip(0), r1.flip(0)))
    assert DirectCLRLoss(loss_dim=5)(r0[:1], r1[:1]) == 0  # no negative


@given(
    n=st.integers(1, 12),
    d=st.integers(1, 10),
    dtype=dtypes,
    log_scale=st.integers(-4, 4),
    seed=seeds,
    data=st.data(),
)
def test_finite_at_any_shape_dtype_and_scale(
    *, n: int, d: int, dtype: torch.dtype, log_scale: int, seed: int, data: st.DataObject
) -> None:
    dim = data.draw(st.integers(1, d), label="loss_dim")
    if dtype == torch.float16:
        log_scale = max(-2, min(log_scale, 3))
    r0 = leaf((10.0**log_scale * normal(n, d, seed=seed)).to(dtype))
    r1 = leaf((10.0**log_scale * normal(n, d, seed=seed + 1)).to(dtype))
    loss = DirectCLRLoss(dim)(r0, r1)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite()
    assert loss >= -1e-6
    for slope in torch.autograd.grad(loss, (r0, r1)):
        assert slope.dtype == dtype
        assert slope.isfinite().all()


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15, 1e25])
def test_does_not_depend_on_the_scale(scale: float) -> None:
    r0, r1 = normal(8, 10, dtype=torch.float32), normal(8, 10, seed=1, dtype=torch.float32)
    loss_fn = DirectCLRLoss(loss_dim=6)
    scaled = leaf(scale * r0)
    loss = loss_fn(scaled, scale * r1)
    torch.testing.assert_close(loss, loss_fn(r0, r1))
    plain = leaf(r0)
    torch.testing.assert_close(
        gradient(loss, scaled) * scale, gradient(loss_fn(plain, r1), plain), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_degenerate_batches(dtype: torch.dtype) -> None:
    view = normal(6, 4, dtype=dtype)
    loss_fn = DirectCLRLoss(loss_dim=4)
    dead = view.index_fill(0, torch.tensor([2]), 0)  # a ReLU may kill a row
    for out0, out1 in (
        (torch.ones_like(view), torch.ones_like(view)),
        (view, view),
        (dead, view),
        (dead, dead),
        (torch.zeros_like(view), torch.zeros_like(view)),
    ):
        r0, r1 = leaf(out0), leaf(out1)
        loss = loss_fn(r0, r1)
        assert loss.isfinite()
        for slope in torch.autograd.grad(loss, (r0, r1)):
            assert slope.isfinite().all()
    assert loss_fn(torch.ones_like(view), torch.ones_like(view)).item() == pytest.approx(
        math.log(6), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    r0, r1 = leaf(normal(8, 10, dtype=torch.float32)), normal(8, 10, seed=1, dtype=torch.float32)
    loss_fn = DirectCLRLoss(loss_dim=6)
    with torch.autocast("cpu", dtype):
        inside = loss_fn(r0, r1)
    slope = gradient(inside, r0)
    outside = loss_fn(r0, r1)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    torch.testing.assert_close(slope, gradient(outside, r0), rtol=0, atol=0)


def test_has_no_state_and_may_be_copied() -> None:
    loss_fn = DirectCLRLoss(loss_dim=4, temperature=0.3)
    assert not loss_fn.state_dict()
    r0, r1 = normal(8, 10), normal(8, 10, seed=1)
    for copy in (deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert copy(r0, r1) == loss_fn(r0, r1)
    assert "temperature=0.3" in repr(loss_fn)


@pytest.mark.parametrize("bad", BAD_FEATURES)
def test_bad_features(bad: Tensor) -> None:
    loss_fn, good = DirectCLRLoss(loss_dim=2), torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"^out0 must"):
        loss_fn(bad, good)
    with pytest.raises(ValueError, match=r"^out1 must"):
        loss_fn(good, bad)


def test_bad_calls() -> None:
    loss_fn = DirectCLRLoss(loss_dim=4)
    for other in (torch.randn(7, 6), torch.randn(8, 5)):
        with pytest.raises(ValueError, match=r"^out0 and out1 must have the same shape"):
            loss_fn(torch.randn(8, 6), other)
    with pytest.raises(ValueError, match=r"^loss_dim must be at most .* 3, got 4"):
        loss_fn(torch.randn(8, 3), torch.randn(8, 3))


def test_bad_settings() -> None:
    for dim in (0, -1):
        with pytest.raises(ValueError, match=r"^loss_dim must be at least 1"):
            DirectCLRLoss(loss_dim=dim)
    for temperature in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^temperature must"):
            DirectCLRLoss(temperature=temperature)
