import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightly_collapse.functional import (
    alpha_req,
    collapsed_dimensions,
    condition_number,
    effective_rank,
    nesum,
    normalized_eigenvalues,
    participation_ratio,
    rankme,
    singular_values,
    stable_rank,
)
from tests.helpers import BAD_FEATURES, DTYPES, dtypes, leaf, normal, seeds, with_spectrum

OF_SPECTRUM = [
    effective_rank,
    stable_rank,
    participation_ratio,
    nesum,
    condition_number,
    collapsed_dimensions,
    alpha_req,
]
BETWEEN_ONE_AND_RANK = [effective_rank, stable_rank, participation_ratio, nesum]


def entropy_rank(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40), (12, 12), (1, 5), (5, 1)])
@pytest.mark.parametrize("center", [False, True])
def test_singular_values_are_those_of_numpy(n: int, d: int, center: bool) -> None:
    z = normal(n, d) + 3
    a = z.numpy() - z.numpy().mean(axis=0) if center else z.numpy()
    s = singular_values(z, center=center)
    assert s.shape == (min(n, d),)
    torch.testing.assert_close(s, torch.from_numpy(np.linalg.svd(a, compute_uv=False)))


def test_mean_a_thousand_times_the_spread() -> None:
    s = torch.tensor([8.0, 4.0, 2.0, 1.0])
    spread = with_spectrum(s, 64, 4)
    spread -= spread.mean(dim=0)
    z = (spread + 1000 * spread.std()).float()
    exact = np.linalg.svd(z.double() - z.double().mean(dim=0), compute_uv=False)
    found = singular_values(z, center=True)
    torch.testing.assert_close(found, torch.from_numpy(exact).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("s", "rank"),
    [
        ([1.0], 1.0),
        ([1.0, 1.0, 1.0, 1.0], 4.0),
        ([5.0, 5.0, 0.0, 0.0], 2.0),
        ([1.0, 0.0, 0.0], 1.0),
        # p = 1/2, 1/4, 1/4: entropy 3/2 ln 2
        ([2.0, 1.0, 1.0], 2**1.5),
        # p = 9/10, 1/10
        ([9.0, 1.0], 10 / 9**0.9),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_effective_rank_of_known_spectra(s: list[float], rank: float, dtype: torch.dtype) -> None:
    assert effective_rank(torch.tensor(s, dtype=dtype)).item() == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(50, 20), (20, 50)])
def test_effective_rank_of_matrices_with_known_spectra(n: int, d: int) -> None:
    s = torch.tensor([4.0, 2.0, 1.0, 1.0])  # p = 1/2, 1/4, 1/8, 1/8: entropy 7/4 ln 2
    z = with_spectrum(s, n, d)
    assert effective_rank(singular_values(z)).item() == pytest.approx(2**1.75, rel=1e-6)
    assert rankme(z).item() == pytest.approx(
        entropy_rank(np.pad(s.numpy() / 8, (0, min(n, d) - 4)) + 1e-7), rel=1e-6
    )


def test_rankme_is_uncentred_and_adds_1e_7() -> None:
    z = normal(64, 16, seed=1) + 2
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    assert rankme(z).item() == pytest.approx(entropy_rank(s / s.sum() + 1e-7), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_matrix_has_rank_one(dtype: torch.dtype) -> None:
    z = torch.full((32, 8), 3.0, dtype=dtype)
    assert effective_rank(singular_values(z)).item() == pytest.approx(1, abs=1e-4)
    assert rankme(z).item() == pytest.approx(1, abs=1e-4)


def test_other_measures_of_known_spectra() -> None:
    s = torch.tensor([4.0, 2.0, 2.0, 1e-3], dtype=torch.float64)
    assert stable_rank(s).item() == pytest.approx(1.5 + 1e-6 / 16)
    assert nesum(s).item() == pytest.approx(1.5 + 1e-6 / 16)
    assert participation_ratio(s).item() == pytest.approx(24**2 / (256 + 32), rel=1e-6)
    assert condition_number(s).item() == pytest.approx(4000)
    assert collapsed_dimensions(s).item() == 1
    assert collapsed_dimensions(s, rtol=1e-4).item() == 0
    assert collapsed_dimensions(s, rtol=0.6).item() == 3
    assert collapsed_dimensions(s, rtol=0).item() == 0
    assert condition_number(torch.tensor([1.0, 0.0])).item() == math.inf


def test_nesum_and_participation_ratio_of_centred_data_are_those_of_the_covariance() -> None:
    z = normal(100, 6, seed=2) @ torch.diag(torch.arange(1.0, 7.0).double()) + 5
    eigenvalues = np.linalg.eigvalsh(np.cov(z.numpy(), rowvar=False))
    s = singular_values(z, center=True)
    assert nesum(s).item() == pytest.approx(eigenvalues.sum() / eigenvalues.max())
    assert participation_ratio(s).item() == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_alpha_req_recovers_a_power_law(alpha: float) -> None:
    s = torch.arange(1, 65).double().pow(-alpha / 2)
    assert alpha_req(s).item() == pytest.approx(alpha, abs=1e-10)
    assert alpha_req(s.flip(0)).item() == pytest.approx(alpha, abs=1e-10)


def test_alpha_req_leaves_out_rounding_errors() -> None:
    s = torch.arange(1, 33).double().pow(-0.5)
    assert alpha_req(torch.cat([s, torch.tensor([1e-17, 0.0])])).item() == pytest.approx(1)


@pytest.mark.parametrize(("rows", "columns"), [(30, 10), (10, 30)])
def test_normalized_eigenvalues(rows: int, columns: int) -> None:
    m = normal(rows, columns, seed=3)
    exact = np.sort(np.linalg.eigvalsh(m.numpy().T @ m.numpy()))[::-1][: min(rows, columns)]
    found = normalized_eigenvalues(m)
    torch.testing.assert_close(found, torch.from_numpy(exact / exact[0]))
    assert found[0] == 1


def test_under_autocast_the_values_are_those_without() -> None:
    z = normal(32, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = singular_values(z, center=True), rankme(z)
    torch.testing.assert_close(inside, (singular_values(z, center=True), rankme(z)), rtol=0, atol=0)


@given(n=st.integers(1, 24), d=st.integers(1, 24), dtype=dtypes, seed=seeds, data=st.data())
def test_measures_of_any_matrix(
    n: int, d: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    largest = 4 if dtype == torch.float16 else 30
    scale = 10.0 ** data.draw(st.integers(-largest, largest), label="log scale")
    z = leaf((normal(n, d, seed=seed) * scale).to(dtype))
    s = singular_values(z, center=data.draw(st.booleans(), label="center"))
    if not s.any():  # one sample, centred
        return
    rounding = 1e-4
    for measure in BETWEEN_ONE_AND_RANK:
        value = measure(s)
        assert 1 - rounding <= value.item() <= min(n, d) + rounding
        (slope,) = torch.autograd.grad(value, z, retain_graph=True)
        if scale >= 1e-4:  # the slope of a scale-free measure grows as 1 / scale
            assert slope.isfinite().all()
    assert condition_number(s).item() >= 1
    assert 0 <= collapsed_dimensions(s).item() < min(n, d) or min(n, d) == 1
    relative = normalized_eigenvalues(z)
    assert ((relative >= 0) & (relative <= 1)).all()
    assert (relative.diff() <= 0).all()
    assert 1 - rounding <= rankme(z).item() <= min(n, d) + rounding


@given(n=st.integers(2, 16), d=st.integers(2, 16), seed=seeds, log_scale=st.integers(-120, 120))
def test_measures_do_not_depend_on_the_scale(n: int, d: int, seed: int, log_scale: int) -> None:
    s = singular_values(normal(n, d, seed=seed, dtype=torch.float32))
    for measure in OF_SPECTRUM:
        scaled = measure(s * 2.0 ** (log_scale / 2))
        torch.testing.assert_close(scaled, measure(s), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [3e38, 1e-36])
def test_measures_at_the_ends_of_float32(scale: float) -> None:
    s = torch.tensor([1.0, 0.5, 0.25, 0.125])
    for measure in OF_SPECTRUM:
        torch.testing.assert_close(measure(s * scale), measure(s))


def test_effective_rank_has_a_finite_gradient_at_zero_singular_values() -> None:
    s = leaf(torch.tensor([2.0, 1.0, 0.0]))
    effective_rank(s).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("z", BAD_FEATURES)
def test_bad_samples(z: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^z must"):
        singular_values(z)
    with pytest.raises(ValueError, match=r"^z must"):
        rankme(z)
    with pytest.raises(ValueError, match=r"^m must"):
        normalized_eigenvalues(z)


@pytest.mark.parametrize("measure", OF_SPECTRUM)
@pytest.mark.parametrize(
    "s",
    [[], [[1.0, 2.0]], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0], [0.0, 0.0]],
    ids=str,
)
def test_bad_spectra(measure, s) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"^s must"):
        measure(torch.tensor(s))


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"^s must .* two"):
        alpha_req(torch.tensor([1.0, 0.0]))
    for rtol in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"^rtol must"):
            collapsed_dimensions(torch.ones(3), rtol=rtol)
    for measure in (rankme, normalized_eigenvalues):
        with pytest.raises(ValueError, match="zero"):
            measure(torch.zeros(4, 4))
