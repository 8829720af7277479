import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightly_collapse.theory import contrastive_covariance


def _sample(n: int, dimension: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, dimension, generator=generator, dtype=torch.float64) + 3
    return x0, x0 + 0.7 * torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def _literal(x0: torch.Tensor, x1: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """The sums of the paper, term by term, over n."""
    n = len(x0)
    total = torch.zeros(x0.shape[1], x0.shape[1], dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            if j != i:
                total += attention[i, j] * torch.outer(x0[i] - x0[j], x0[i] - x0[j])
        total -= (1 - attention[i, i]) * torch.outer(x1[i] - x0[i], x1[i] - x0[i])
    return total / n


def test_uniform_weights_are_the_sums_of_the_paper():
    x0, x1 = _sample(7, 3)
    expected = _literal(x0, x1, torch.full((7, 7), 1 / 7, dtype=torch.float64))
    torch.testing.assert_close(contrastive_covariance(x0, x1).matrix, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.floats(0.05, 5), st.integers(0, 1000))
def test_minus_weight_times_matrix_is_the_gradient_of_the_loss(n, dimension, temperature, seed):
    x0, x1 = _sample(n, dimension, seed)
    weight = 0.3 * torch.randn(4, dimension, dtype=torch.float64).requires_grad_()
    z0, z1 = x0 @ weight.T, x1 @ weight.T
    squared = (z0[:, None] - z0[None]).square().sum(-1)
    diagonal = torch.eye(n, dtype=torch.bool)
    squared = torch.where(diagonal, (z1 - z0).square().sum(1)[:, None], squared)
    logits = -squared / (2 * temperature)
    loss = -temperature * logits.log_softmax(1).diagonal().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    x = contrastive_covariance(x0, x1, temperature, weight.detach())
    torch.testing.assert_close(-weight.detach() @ x.matrix, gradient, rtol=1e-6, atol=1e-9)


def test_uniform_weights_with_both_views_augmented_are_never_negative():
    # 2 (1 - 1/N) cov(clean data), whatever the augmentation.
    generator = torch.Generator().manual_seed(0)
    clean, *noises = (
        torch.randn(200_000, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    strength = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    x = contrastive_covariance(clean + strength * noises[0], clean + strength * noises[1])
    torch.testing.assert_close(x.matrix, 2 * torch.eye(4, dtype=torch.float64), rtol=0, atol=0.15)
    assert len(x.negative_directions()) == 0


def test_negative_directions_are_the_strongly_augmented_ones():
    generator = torch.Generator().manual_seed(1)
    clean, noise = (
        torch.randn(50_000, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    strength = torch.tensor([0.1, 1.0, 1.6, 3.0], dtype=torch.float64)  # sqrt 2 is the border
    x = contrastive_covariance(clean, clean + strength * noise)
    directions = x.negative_directions()
    assert directions.shape == (2, 4)
    expected = torch.eye(4, dtype=torch.float64)[[3, 2]]
    torch.testing.assert_close(directions.abs(), expected, rtol=0, atol=0.03)
    assert (x.eigenvalues.diff() <= 0).all()
    torch.testing.assert_close(x.matrix, x.data - x.augmentation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x1": torch.zeros(3, 2)}, "x1 must pair with x0"),
        ({"x0": torch.zeros(1, 2)}, "x0 must have at least 2"),
        ({"x0": torch.full((4, 2), float("nan"))}, "x0 must be finite"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"weight": torch.eye(2)}, "give a temperature"),
        ({"weight": torch.eye(3), "temperature": 1.0}, r"weight must have shape \(d, 2\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    good = {"x0": torch.randn(4, 2), "x1": torch.randn(4, 2)}
    with pytest.raises(ValueError, match=message):
        contrastive_covariance(**{**good, **arguments})
