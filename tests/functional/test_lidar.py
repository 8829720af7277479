"""LiDAR against the formula of the paper, and on cases worked out by hand."""

import math

import pytest
import torch

from lightly_collapse.functional import lidar
from lightly_collapse.functional.lidar import _single_precision


def textbook(z, delta=1e-4):
    """Equation by equation: covariances, matrix root, general eigenvalues, entropy."""
    n, q, d = z.shape
    mu_i = z.mean(dim=1)
    mu = mu_i.mean(dim=0)
    s_b = sum(torch.outer(m - mu, m - mu) for m in mu_i) / n
    s_w = sum(torch.outer(e - m, e - m) for m, row in zip(mu_i, z, strict=True) for e in row)
    s_w = s_w / (n * q) + delta * torch.eye(d, dtype=z.dtype)
    values, vectors = torch.linalg.eigh(s_w)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    eigenvalues = torch.linalg.eigvals(root @ s_b @ root).real.clamp(min=0)
    p = eigenvalues / eigenvalues.sum() + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


@pytest.mark.parametrize(("n", "q", "d"), [(40, 5, 8), (6, 3, 20), (2, 2, 1)])
def test_lidar_is_the_formula(n, q, d):
    g = torch.Generator().manual_seed(n)
    z = torch.randn(n, 1, d, generator=g, dtype=torch.float64) * torch.linspace(0.1, 2, d)
    z = z + 0.3 * torch.randn(n, q, d, generator=g, dtype=torch.float64)
    assert float(lidar(z)) == pytest.approx(textbook(z), rel=1e-8)


def test_lidar_of_two_directions_by_hand():
    # Four samples at (+-a, 0) and (0, +-b); the views differ by +-c along both axes at once.
    # S_b = diag(a^2, b^2) / 2; S_w = c^2 [[1, 1], [1, 1]] + delta I.
    a, b, c, delta = 2.0, 1.0, 0.1, 1e-4
    mu = torch.tensor([[a, 0], [-a, 0], [0, b], [0, -b]], dtype=torch.float64)
    z = torch.stack([mu + c, mu - c], dim=1)
    # det and trace of S_w^-1 S_b give its two eigenvalues.
    det_w = (c * c + delta) ** 2 - c**4
    det = a * a * b * b / 4 / det_w
    trace = (c * c + delta) * (a * a + b * b) / 2 / det_w
    l0 = trace / 2 + math.sqrt(trace**2 / 4 - det)
    l1 = trace / 2 - math.sqrt(trace**2 / 4 - det)
    p = [l0 / trace + 1e-7, l1 / trace + 1e-7]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert float(lidar(z)) == pytest.approx(expected, rel=1e-9)


def test_lidar_ignores_directions_that_only_augmentation_uses():
    g = torch.Generator().manual_seed(0)
    signal = torch.randn(200, 1, 4, generator=g).expand(-1, 8, -1)
    noise = torch.randn(200, 8, 12, generator=g)
    assert float(lidar(torch.cat([signal, noise], dim=2))) == pytest.approx(4, abs=0.1)


def test_lidar_in_half_precision_and_under_autocast():
    z = torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(lidar(z), lidar(z.double()).float())
    assert lidar(z.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("within", "scale"),
    [
        # Augmentation along one direction in 32, a hundred million times delta.
        (torch.eye(32)[:1] * 100, 1.0),
        # The same far from the axes, and squares that float32 cannot hold.
        (torch.ones(1, 32) * 30, 1.0),
        (torch.eye(32), 1e25),
        (torch.eye(32), 1.0),
    ],
)
def test_lidar_of_float32_is_that_of_float64(within, scale):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(60, 1, 32, generator=g) * torch.logspace(0, -3, 32)
    z = (means + torch.randn(60, 7, len(within), generator=g) @ within) * scale
    delta = 1e-4 * scale**2
    expected = float(lidar(z.double(), delta))
    assert float(lidar(z, delta)) == pytest.approx(expected, rel=1e-4)


def test_float32_is_refused_where_its_rounding_shows():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 10, 64, generator=g)
    assert _single_precision(noise, 1e-4) is not None
    line = torch.randn(500, 10, 1, generator=g) * torch.randn(64, generator=g)
    # Rounding of 3 % of the smallest eigenvalue; and so much that it makes S_w indefinite.
    for scale in (1, 100):
        z = scale * line + torch.randn(500, 1, 64, generator=g) * torch.logspace(0, -3, 64)
        assert _single_precision(z, 1e-4) is None
        assert float(lidar(z)) == pytest.approx(float(lidar(z.double())), rel=2e-6)


def test_lidar_has_a_gradient():
    z = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lidar, z.requires_grad_())


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(4, 3), "z must be 3-D"),
        (torch.zeros(1, 3, 2), "at least 2 sample"),
        (torch.zeros(4, 1, 2), "two augmentations"),
        (torch.zeros(4, 3, 2), "means differ"),
        (torch.full((4, 3, 2), float("nan")), "24 NaN or inf"),
    ],
)
def test_lidar_says_what_is_wrong(z, message):
    with pytest.raises(ValueError, match=message):
        lidar(z)


def test_lidar_refuses_a_delta_of_zero():
    with pytest.raises(ValueError, match="delta must be positive, got 0"):
        lidar(torch.rand(4, 3, 2), delta=0)
