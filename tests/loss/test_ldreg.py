import math
import pickle
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightly_collapse.functional import fisher_rao_distance, geometric_mean, lid_mle, lid_mom
from lightly_collapse.loss import LDRegularizer
from tests.helpers import BAD_FEATURES, dtypes, gradient, leaf, normal, orthonormal, seeds

NORMS = ("l1", "l2")
ESTIMATORS = ("mom", "mle")


def plain(
    x: Tensor, further: Tensor | None, *, k: int, norm: str, estimator: str, weight: float
) -> Tensor:
    """The formula, sample by sample, with the whole distance matrix and a full sort."""
    points = x.detach() if further is None else torch.cat([x.detach(), further])
    logs = []
    for i in range(len(x)):
        others = torch.cat([points[:i], points[i + 1 :]])
        r = (x[i] - others).norm(dim=1).sort().values[:k]
        if estimator == "mom":
            m = r[:-1].mean()
            logs.append((m / (r[-1] - m)).log())
        else:
            logs.append(-(-(r / r[-1]).log().mean()).log())
    log_lid = torch.stack(logs)
    return -weight * (log_lid.mean() if norm == "l1" else log_lid.square().mean().sqrt())


@pytest.mark.parametrize("k", [8, 20, 64])
def test_golden_value_and_gradient(golden, k: int) -> None:  # type: ignore[no-untyped-def]
    values = golden("lid")
    x = leaf(values["features"])
    # The official reference is the features followed by such further rows.
    further = values["reference"][len(x) :]
    penalty = LDRegularizer(weight=1.0, k=k)(x, reference=further)
    torch.testing.assert_close(penalty, values[f"ldreg_l1_k{k}"], rtol=1e-6, atol=0)
    exact = values[f"ldreg_l1_grad_k{k}"]
    torch.testing.assert_close(
        gradient(penalty, x), exact, rtol=1e-6, atol=1e-6 * exact.abs().max().item()
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_plain_formula(
    norm: str, estimator: str, with_reference: bool, views: int
) -> None:
    x = leaf(normal(24, 7, seed=30))
    further = normal(11, 7, seed=31) if with_reference else None
    regularizer = LDRegularizer(weight=0.3, k=6, norm=norm, estimator=estimator)
    penalty = regularizer(*x.chunk(views), reference=further)
    exact = plain(x, further, k=6, norm=norm, estimator=estimator, weight=0.3)
    torch.testing.assert_close(penalty, exact)
    torch.testing.assert_close(gradient(penalty, x), gradient(exact, x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck(norm: str, estimator: str) -> None:
    regularizer = LDRegularizer(weight=1.0, k=4, norm=norm, estimator=estimator)
    # The samples are held still as neighbours, which a finite difference would move too; so all
    # neighbours are further rows, the two samples far from each other.
    x = leaf(torch.stack([normal(3) - 50, normal(3, seed=1) + 50]))
    further = torch.cat([normal(8, 3, seed=2) - 50, normal(8, 3, seed=3) + 50])
    assert torch.autograd.gradcheck(lambda x: regularizer(x, reference=further), (x,))


def test_no_gradient_reaches_the_reference() -> None:
    x, further = leaf(normal(8, 3)), leaf(normal(8, 3, seed=1))
    LDRegularizer(k=3)(x, reference=further).backward()
    assert further.grad is None


def test_descending_it_raises_the_dimension() -> None:
    line = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None] * normal(1, 5)
    x = leaf(line + 0.01 * normal(40, 5, seed=1))
    regularizer = LDRegularizer(weight=1.0, k=10)
    before = regularizer(x).item()
    for _ in range(20):
        x = leaf(x - 0.05 * gradient(regularizer(x), x))
    assert regularizer(x).item() < before - 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_degenerate_batches(norm: str, estimator: str, dtype: torch.dtype) -> None:
    view = normal(8, 4, dtype=dtype)
    for out0, out1 in (
        (torch.ones(8, 4, dtype=dtype), torch.ones(8, 4, dtype=dtype)),
        (torch.zeros(8, 4, dtype=dtype), torch.zeros(8, 4, dtype=dtype)),
        (view, view),  # equal views
        (torch.eye(8, dtype=dtype), -torch.eye(8, dtype=dtype)),
        (view[:1].repeat(8, 1), view),
    ):
        for k in (2, 5, 15):
            x0, x1 = leaf(out0), leaf(out1)
            penalty = LDRegularizer(k=k, norm=norm, estimator=estimator)(x0, x1)
            assert penalty.isfinite()
            for slope in torch.autograd.grad(penalty, (x0, x1)):
                assert slope.dtype == dtype
                assert slope.isfinite().all()


def test_l2_at_dimension_one_has_no_gradient_rather_than_nan() -> None:
    # r = 1, 2, 3 on a line: LID = 1.5 / (3 - 1.5) = 1, ln LID = 0.
    x = leaf(torch.zeros(1, 1, dtype=torch.float64))
    further = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    penalty = LDRegularizer(k=3, norm="l2", weight=1.0)(x, reference=further)
    assert penalty.item() == pytest.approx(0, abs=1e-12)
    assert gradient(penalty, x).isfinite().all()


@given(
    n=st.integers(2, 12),
    d=st.integers(1, 8),
    dtype=dtypes,
    norm=st.sampled_from(NORMS),
    estimator=st.sampled_from(ESTIMATORS),
    seed=seeds,
    data=st.data(),
)
def test_finite_at_any_shape_dtype_and_scale(
    *, n: int, d: int, dtype: torch.dtype, norm: str, estimator: str, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(2, 2 * n - 1), label="k")
    log_scale = data.draw(st.integers(-1, 3) if dtype == torch.float16 else st.integers(-12, 12))
    x0 = leaf((10.0**log_scale * normal(n, d, seed=seed)).to(dtype))
    x1 = leaf((10.0**log_scale * normal(n, d, seed=seed + 1)).to(dtype))
    penalty = LDRegularizer(k=k, norm=norm, estimator=estimator)(x0, x1)
    assert penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert penalty.isfinite()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(penalty, (x0, x1)))


@given(seed=seeds, scale=st.floats(1e-6, 1e6), norm=st.sampled_from(NORMS))
def test_invariant_under_scaling_and_rotation(seed: int, scale: float, norm: str) -> None:
    x0, x1 = normal(10, 4, seed=seed), normal(10, 4, seed=seed + 1)
    turn = scale * orthonormal(4, 4, seed)
    regularizer = LDRegularizer(weight=1.0, k=5, norm=norm)
    torch.testing.assert_close(
        regularizer(x0 @ turn, x1 @ turn), regularizer(x0, x1), rtol=1e-6, atol=1e-9
    )


def test_order_of_views_and_samples_does_not_matter() -> None:
    x0, x1 = normal(10, 4), normal(10, 4, seed=1)
    regularizer = LDRegularizer(k=5)
    torch.testing.assert_close(regularizer(x0, x1), regularizer(x1.flip(0), x0.roll(3, 0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    x = leaf(normal(20, 8, dtype=torch.float32))
    regularizer = LDRegularizer(k=5)
    with torch.autocast("cpu", dtype):
        inside = regularizer(x)
    slope = gradient(inside, x)
    outside = regularizer(x)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    torch.testing.assert_close(slope, gradient(outside, x), rtol=0, atol=0)


def test_reference_of_another_dtype() -> None:
    x, further = normal(10, 4), normal(10, 4, seed=1)
    regularizer = LDRegularizer(weight=1.0, k=5)
    exact = regularizer(x, reference=further)
    torch.testing.assert_close(regularizer(x, reference=further.float()), exact, rtol=1e-5, atol=0)
    mixed = regularizer(x.float(), reference=further)
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-5, atol=0)


def test_weight_scales_and_zero_switches_off() -> None:
    x = leaf(normal(10, 4))
    one = LDRegularizer(weight=1.0, k=5)(x)
    torch.testing.assert_close(LDRegularizer(weight=0.25, k=5)(x), one / 4)
    nothing = LDRegularizer(weight=0, k=5)(x)
    assert nothing.item() == 0
    assert (gradient(nothing, x) == 0).all()


def test_has_no_state_and_may_be_copied() -> None:
    regularizer = LDRegularizer(k=5, norm="l2", estimator="mle")
    assert not regularizer.state_dict()
    assert not list(regularizer.parameters())
    x = normal(10, 4)
    for copy in (deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))):
        assert copy(x) == regularizer(x)
    assert "norm='l2'" in repr(regularizer)


@pytest.mark.parametrize("bad", BAD_FEATURES)
def test_bad_features(bad: Tensor) -> None:
    regularizer = LDRegularizer(k=2)
    good = torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"^views\[0\] must"):
        regularizer(bad)
    with pytest.raises(ValueError, match=r"^views\[1\] must"):
        regularizer(good, bad)
    with pytest.raises(ValueError, match=r"^reference must"):
        regularizer(good, reference=bad)


def test_bad_calls() -> None:
    regularizer = LDRegularizer(k=4)
    with pytest.raises(ValueError, match=r"^views must hold at least one"):
        regularizer()
    for other in (torch.randn(7, 4), torch.randn(8, 3)):
        with pytest.raises(ValueError, match=r"^views must have the same shape"):
            regularizer(torch.randn(8, 4), other)
    with pytest.raises(ValueError, match=r"^reference must have the width of the views, 4, got 3"):
        regularizer(torch.randn(8, 4), reference=torch.randn(8, 3))
    for n in (4, 3, 1):
        with pytest.raises(ValueError, match=rf"^k must be below .* {n}, got 4"):
            regularizer(torch.randn(n, 3))
    regularizer(torch.randn(5, 3))
    regularizer(torch.randn(2, 3), reference=torch.randn(3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -0.01}, "^weight must"),
        ({"weight": math.nan}, "^weight must"),
        ({"weight": math.inf}, "^weight must"),
        ({"k": 1}, "^k must be at least 2, got 1"),
        ({"k": 0}, "^k must"),
        ({"k": -5}, "^k must"),
        ({"norm": "l3"}, "^norm must be one of l1, l2, got 'l3'"),
        ({"estimator": "mean"}, "^estimator must be one of mom, mle, got 'mean'"),
    ],
    ids=str,
)
def test_bad_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDRegularizer(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_target_dimension_is_the_fisher_rao_distance(estimator: str) -> None:
    x, target = leaf(normal(24, 7, seed=30)), 3.5
    for norm in NORMS:
        lid = {"mom": lid_mom, "mle": lid_mle}[estimator](x, k=6)
        distance = fisher_rao_distance(lid, torch.tensor(target, dtype=torch.float64))
        mean = distance.mean() if norm == "l1" else distance.square().mean().sqrt()
        regularizer = LDRegularizer(0.3, 6, norm, estimator, target_dimension=target)
        penalty = regularizer(x)
        torch.testing.assert_close(penalty, 0.3 * mean)
        torch.testing.assert_close(gradient(penalty, x), gradient(0.3 * mean, x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", [2.0, 12.0])
def test_descending_pulls_towards_the_target(norm: str, target: float) -> None:
    x = leaf(normal(60, 8))
    regularizer = LDRegularizer(weight=1.0, k=15, norm=norm, target_dimension=target)
    before = regularizer(x).item()
    start = geometric_mean(lid_mom(x, k=15)).item()
    for _ in range(30):
        x = leaf(x - 0.1 * gradient(regularizer(x), x))
    assert regularizer(x).item() < before
    end = geometric_mean(lid_mom(x, k=15)).item()
    assert (end - start) * (target - start) > 0


def test_minimize_is_the_opposite_and_lowers_the_dimension() -> None:
    x = leaf(normal(30, 6))
    up, down = LDRegularizer(1.0, 8), LDRegularizer(1.0, 8, minimize=True)
    torch.testing.assert_close(down(x), -up(x))
    before = geometric_mean(lid_mom(x, k=8)).item()
    for _ in range(20):
        x = leaf(x - 0.05 * gradient(down(x), x))
    assert geometric_mean(lid_mom(x, k=8)).item() < before - 0.1


def test_bad_targets() -> None:
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^target_dimension must be positive"):
            LDRegularizer(target_dimension=target)
    with pytest.raises(ValueError, match=r"^minimize must be False with a target_dimension"):
        LDRegularizer(target_dimension=4.0, minimize=True)
