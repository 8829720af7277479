import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lightly_collapse.theory.closed_forms import (
    aligned_singular_values,
    exponential_solution,
    saturating_singular_values,
)


def _solve(rates, start, time):
    solution = solve_ivp(rates, (0, time), start, rtol=1e-10, atol=1e-13, method="LSODA")
    return torch.from_numpy(solution.y[:, -1])


def test_exponential_solution_solves_the_linear_flow():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    growth = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    growth = growth + growth.T

    def rates(_, w):
        return (w.reshape(3, 4) @ growth.numpy()).ravel()

    expected = _solve(rates, weight.numpy().ravel(), 0.8).reshape(3, 4)
    values = exponential_solution(weight, growth, torch.tensor([0.8]))
    torch.testing.assert_close(values[0], torch.linalg.svdvals(expected), rtol=1e-6, atol=1e-8)


def test_exponential_solution_overflows_to_inf_without_nan():
    values = exponential_solution(torch.eye(2), torch.eye(2), torch.tensor([1.0, 1e4]))
    assert values[0].isfinite().all()
    assert values[1].isinf().all()


@pytest.mark.parametrize("growth", [0.7, -0.7])
def test_aligned_singular_values_solve_the_coupled_equations(growth):
    first = torch.tensor([0.5, 0.3, 0.2, 0.4], dtype=torch.float64)
    second = torch.tensor([0.2, 0.3, 0.6, 0.4 + 1e-12], dtype=torch.float64)

    def rates(_, s):
        s1, s2 = np.split(s, 2)
        return np.concatenate([growth * s1 * s2**2, growth * s2 * s1**2])

    expected = _solve(rates, torch.cat([first, second]).numpy(), 2.0)
    got = aligned_singular_values(first, second, torch.tensor(growth), torch.tensor(2.0))
    torch.testing.assert_close(torch.cat(got), expected, rtol=1e-6, atol=1e-9)


def test_aligned_singular_values_diverge_in_finite_time():
    s = torch.tensor([1.0], dtype=torch.float64)
    for time, finite in ((0.49, True), (0.51, False)):  # at 1 / (2 g s^2)
        s1, s2 = aligned_singular_values(s, s, torch.tensor(1.0), torch.tensor(time))
        assert s1.isfinite().all() == s2.isfinite().all() == finite


def test_small_singular_values_lag_exponentially():
    # The ratio of two grows: the theorem's point.
    s = torch.tensor([0.5, 0.25], dtype=torch.float64)
    later, _ = aligned_singular_values(s, s, torch.tensor(1.0), torch.tensor(1.9))
    assert later[0] / later[1] > 4


def test_saturating_singular_values_solve_their_equation():
    # q above and below the ceiling, early and late.
    start = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=torch.float64)
    growth, ceiling = 3.0, 0.4

    def rates(_, s):
        return growth * s**3 * (1 - s**4 / ceiling**2)

    for time in (0.0, 0.3, 3.0, 20.0):
        expected = _solve(rates, start.numpy(), time) if time else start
        got = saturating_singular_values(
            start, torch.tensor(growth), torch.tensor(ceiling), torch.tensor(time)
        )
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
