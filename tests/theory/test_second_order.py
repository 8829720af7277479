"""B of Barlow Twins, VICReg and BYOL against the losses themselves."""

import pytest
import torch
from lightly.loss import VICRegLoss

from lightly_collapse.theory.second_order import (
    barlow_twins_landscape,
    byol_matrix,
    vicreg_matrix,
)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    clean *= torch.tensor([2.0, 1.0, 0.5, 0.1])
    noise = torch.tensor([0.1, 1.0, 0.3, 2.0])
    x0, x1 = (
        clean + noise * torch.randn(500, 4, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return x0 - x0.mean(0), x1 - x1.mean(0)


def moments(x0, x1, correction):
    """A0 and C of the sample: S the mean of the views' covariances, C half the difference's."""
    count = len(x0) - correction
    s = (x0.T @ x0 + x1.T @ x1) / (2 * count)
    c = (x0 - x1).T @ (x0 - x1) / (2 * count)
    return s - c, c


@torch.no_grad()
def test_vicreg_against_lightlys_loss(views):
    x0, x1 = views
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    criterion = VICRegLoss(lambda_param=25.0, mu_param=10.0, nu_param=1.0, eps=1e-4)
    scale = 1e-4
    z0, z1 = (scale * x @ weight.T for x in views)
    found = (criterion(torch.zeros_like(z0), torch.zeros_like(z1)) - criterion(z0, z1)) / scale**2
    # The invariance term divides by n, the variance by n - 1: one of each.
    a, c = moments(x0, x1, 1)
    b = vicreg_matrix(a, c, 3, invariance=25.0, variance=10.0)
    expected = (weight @ b * weight).sum()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_barlow_twins_against_its_loss(views):
    x0, x1 = views
    a = (x0.T @ x1 + x1.T @ x0) / (2 * len(x0))
    a = a + 0.5 * torch.eye(4)  # positive, as a population's is
    landscape = barlow_twins_landscape(a, torch.eye(4), weight_decay=0.3)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = (torch.eye(3) - weight @ a @ weight.T).square().sum() + 0.3 * weight.square().sum()
    torch.testing.assert_close(landscape.loss(weight), loss - 3)
    whitened = barlow_twins_landscape(a, torch.eye(4)).global_minimum(4)
    torch.testing.assert_close(whitened @ a @ whitened.T, torch.eye(4).double())


@pytest.mark.parametrize("predictor", [0.3, 1.0])
def test_byol_against_its_gradient(views, predictor):
    x0, x1 = views
    a, c = moments(x0, x1, 0)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight.requires_grad_()
    z0, z1 = x0 @ weight.T, x1 @ weight.T
    both = ((predictor * z0 - z1.detach()), (predictor * z1 - z0.detach()))
    loss = sum(error.square().sum(dim=1).mean() for error in both)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(-gradient, 2 * weight.detach() @ byol_matrix(a, c, predictor))
    if predictor == 1.0:
        # Nothing grows without a predictor.
        assert torch.linalg.eigvalsh(byol_matrix(a, c, 1.0)).max() < 1e-12


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: barlow_twins_landscape(x, x, weight_decay=-1), "weight_decay"),
        (lambda x: vicreg_matrix(x, x, 0), "width"),
        (lambda x: byol_matrix(x, x, 0.0), "predictor must be positive, got 0.0"),
        (lambda x: byol_matrix(x, torch.eye(3), 0.5), "same shape"),
    ],
)
def test_bad_arguments_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.eye(2))
