"""The spectrum of tall float32 matrices against a float64 SVD."""

import pytest
import torch

from lightly_collapse.functional import rankme
from lightly_collapse.functional.gram import add_gram, tall_singular_values
from lightly_collapse.functional.spectrum import rankme_of_spectrum
from tests.helpers import normal, orthonormal


@pytest.mark.parametrize("d", [1, 3, 130, 600])
def test_upper_triangle_of_the_gram_matrix(d):
    x = normal(20, d)
    upper = torch.ones(d, d, dtype=torch.float64)
    add_gram(upper, x)
    torch.testing.assert_close(upper.triu(), (x.T @ x + 1).triu())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_small_singular_values_survive(scale):
    s = torch.logspace(0, -6, 40, dtype=torch.float64)
    z = (orthonormal(5000, 40) * s @ orthonormal(40, 40, seed=1) * scale).float()
    exact = torch.linalg.svdvals(z.double())
    torch.testing.assert_close(tall_singular_values(z).double(), exact, rtol=1e-4, atol=0)


def test_rankme_is_the_same_by_both_ways():
    z = normal(300, 20, dtype=torch.float32) * torch.logspace(0, -5, 20)
    exact = rankme_of_spectrum(torch.linalg.svdvals(z.double())).float()
    torch.testing.assert_close(rankme(z), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(rankme(z.clone().requires_grad_()), exact, rtol=1e-5, atol=0)
