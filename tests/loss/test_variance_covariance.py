import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import VICRegLoss
from torch import Tensor

from lightly_collapse.functional import covariance_penalty, variance_penalty
from lightly_collapse.loss import VarianceCovarianceRegularizer
from tests.helpers import BAD_FEATURES, dtypes, gradient, leaf, normal, orthonormal, seeds


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (12, 12), (2, 1)])
def test_functions_are_the_plain_formulas(n: int, d: int) -> None:
    z = normal(n, d) * torch.linspace(0.1, 2, d).double() + 3
    c = torch.cov(z.T).reshape(d, d)
    hinge = [max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(d)]
    off = [c[i, j].item() ** 2 for i in range(d) for j in range(d) if i != j]
    assert variance_penalty(z).item() == pytest.approx(sum(hinge) / d, abs=1e-14)
    assert covariance_penalty(z).item() == pytest.approx(sum(off) / d, rel=1e-10, abs=1e-20)


@pytest.mark.parametrize(("n", "d"), [(24, 6), (6, 24)])
@pytest.mark.parametrize(("mu", "nu"), [(25.0, 1.0), (0.3, 0.0), (0.0, 2.0)])
def test_value_and_gradient_are_those_of_lightly(n: int, d: int, mu: float, nu: float) -> None:
    z0, z1 = leaf(0.7 * normal(n, d)), leaf(0.7 * normal(n, d, seed=1))
    ours = VarianceCovarianceRegularizer(mu, nu)(z0, z1)
    theirs = VICRegLoss(lambda_param=0.0, mu_param=mu, nu_param=nu)(z0, z1)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (z0, z1)), torch.autograd.grad(theirs, (z0, z1))
    )


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)])
def test_gradcheck(n: int, d: int) -> None:
    views = tuple(leaf(0.5 * normal(n, d, seed=s)) for s in range(2))
    assert torch.autograd.gradcheck(VarianceCovarianceRegularizer(1.0, 0.5), views)


def test_closed_forms() -> None:
    # Orthonormal centred columns: C = I * (s^2 / (n - 1)).
    z = torch.linalg.qr(normal(32, 5) - normal(32, 5).mean(dim=0))[0]
    z = (z - z.mean(dim=0)) * math.sqrt(31)
    assert covariance_penalty(z).item() == pytest.approx(0, abs=1e-20)
    assert variance_penalty(2 * z).item() == 0
    assert variance_penalty(z / 2, eps=1e-12).item() == pytest.approx(0.5)
    assert variance_penalty(z / 2, target=0.25).item() == 0
    # All dimensions equal: every C_ij is the variance, d (d - 1) of them off the diagonal.
    same = normal(20, 1).expand(20, 6)
    variance = same[:, 0].var().item()
    assert covariance_penalty(same).item() == pytest.approx(5 * variance**2)
    constant = torch.ones(8, 3)
    assert variance_penalty(constant).item() == pytest.approx(1 - 0.01, rel=1e-6)
    assert covariance_penalty(constant).item() == 0


@given(seed=seeds, n=st.integers(2, 20), d=st.integers(1, 20), dtype=dtypes)
def test_properties(*, seed: int, n: int, d: int, dtype: torch.dtype) -> None:
    z = leaf(normal(n, d, seed=seed, dtype=dtype))
    regularizer = VarianceCovarianceRegularizer(1.0, 1.0)
    value = regularizer(z)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert value >= -1e-5
    assert gradient(value, z).isfinite().all()
    wide = z.detach().double()
    moved = wide.flip(0) + 5
    torch.testing.assert_close(regularizer(moved), regularizer(wide), rtol=1e-6, atol=1e-9)
    turned = wide.flip(1) * torch.tensor([-1.0, 1.0]).double()[torch.arange(d) % 2]
    torch.testing.assert_close(regularizer(turned), regularizer(wide), rtol=1e-6, atol=1e-9)


def test_descending_it_decorrelates() -> None:
    x = leaf(normal(64, 2) @ normal(2, 8, seed=1) + 0.05 * normal(64, 8, seed=2))
    regularizer = VarianceCovarianceRegularizer(1.0, 1.0)
    before = covariance_penalty(x).item()
    for _ in range(200):
        x = leaf(x - 5 * gradient(regularizer(x), x))
    assert covariance_penalty(x).item() < before / 10
    assert variance_penalty(x).item() < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    x = normal(20, 8, dtype=torch.float32)
    regularizer = VarianceCovarianceRegularizer()
    with torch.autocast("cpu", dtype):
        inside = regularizer(x, x + 1)
    torch.testing.assert_close(inside, regularizer(x, x + 1), rtol=0, atol=0)


def test_weights_of_zero_give_zero_with_a_gradient() -> None:
    x = leaf(normal(6, 3))
    penalty = VarianceCovarianceRegularizer(0.0, 0.0)(x, x)
    assert penalty.item() == 0
    assert (gradient(penalty, x) == 0).all()
    assert "covariance_weight=1.0" in repr(VarianceCovarianceRegularizer())
    assert not VarianceCovarianceRegularizer().state_dict()


@pytest.mark.parametrize("bad", BAD_FEATURES)
def test_bad_features(bad: Tensor) -> None:
    regularizer, good = VarianceCovarianceRegularizer(), orthonormal(8, 4)
    with pytest.raises(ValueError, match=r"^views\[1\] must"):
        regularizer(good, bad)
    for function in (variance_penalty, covariance_penalty):
        with pytest.raises(ValueError, match=r"^z must"):
            function(bad)


def test_bad_calls_and_settings() -> None:
    with pytest.raises(ValueError, match=r"^views must hold at least one"):
        VarianceCovarianceRegularizer()()
    with pytest.raises(ValueError, match=r"^views\[0\] must have at least 2 row"):
        VarianceCovarianceRegularizer()(torch.randn(1, 4))
    for name in ("variance_weight", "covariance_weight"):
        for value in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"^{name} must "):
                VarianceCovarianceRegularizer(**{name: value})
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"^eps must"):
            VarianceCovarianceRegularizer(eps=value)
        with pytest.raises(ValueError, match=r"^target must"):
            variance_penalty(torch.ones(3, 2), target=value)
