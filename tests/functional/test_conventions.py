"""The same measure as other packages define it, against values made by running them.

How fixtures/conventions.json was made: the rows of `data` below were given to reptrix 0.1.0
(`rankme.get_rankme`, `alpha.get_alpha`, `lidar.get_lidar`), to the callbacks `RankMe` and `LiDAR`
of stable-pretraining 0.1.8 (their queue replaced by the rows), to scikit-dimension 0.5.0 (`TwoNN`,
`MOM` and `MLE` with 20 neighbours, of the first 8 rows) and to DADApy 0.3.4 (`compute_id_2NN`, both
algorithms; `return_data_overlap` with k = 30 and `return_information_imbalace` with k = 1 and 5,
from Python instead of Cython), all in float64 with NumPy 2.4.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightly_collapse.functional import (
    alpha_req,
    information_imbalance,
    lid_mle,
    lid_mom,
    lidar,
    neighbor_overlap,
    rankme,
    singular_values,
    two_nn,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "conventions.json").read_text())


def data():
    """Rows that NumPy promises to make alike in every version."""
    rng = np.random.RandomState(0)
    z = rng.standard_normal((400, 120)) * np.arange(1, 121) ** -0.7 + 0.3
    a = rng.standard_normal((60, 1, 24)) * np.arange(1, 25) ** -0.5
    a = a + 0.2 * rng.standard_normal((60, 5, 24))
    p = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 10))
    q = np.tanh(p @ rng.standard_normal((10, 7))) + 0.1 * rng.standard_normal((300, 7))
    rows = {"z": z, "a": a, "p": p, "q": q}
    for name, x in rows.items():
        assert [x.sum(), (x**2).sum()] == pytest.approx(GOLDEN["checksums"][name], rel=1e-9)
    return {name: torch.from_numpy(x) for name, x in rows.items()}


X = data()
S = singular_values(X["z"], center=True)
TABLE = {
    ("reptrix", "rankme"): lambda: rankme(X["z"], convention="reptrix"),
    ("reptrix", "alpha_req"): lambda: alpha_req(S, convention="reptrix"),
    ("reptrix", "lidar"): lambda: lidar(X["a"], convention="reptrix"),
    ("stable-pretraining", "rankme"): lambda: rankme(X["z"], convention="stable-pretraining"),
    ("stable-pretraining", "lidar"): lambda: lidar(X["a"], convention="stable-pretraining"),
    ("scikit-dimension", "lid_mom"): lambda: lid_mom(X["p"], convention="scikit-dimension")[:8],
    ("scikit-dimension", "lid_mle"): lambda: lid_mle(X["p"], convention="scikit-dimension")[:8],
    ("scikit-dimension", "two_nn"): lambda: two_nn(X["p"]),
    ("dadapy", "two_nn"): lambda: two_nn(X["p"]),
    ("dadapy", "two_nn_ml"): lambda: two_nn(X["p"], convention="mle"),
    ("dadapy", "neighbor_overlap"): lambda: neighbor_overlap(X["p"], X["q"], k=30),
    ("dadapy", "information_imbalance"): lambda: information_imbalance(X["p"], X["q"]),
    ("dadapy", "information_imbalance_5"): lambda: information_imbalance(X["p"], X["q"], k=5),
}


def test_the_table_is_whole():
    assert set(TABLE) == {
        (p, m) for p, values in GOLDEN.items() if p != "checksums" for m in values
    }


@pytest.mark.parametrize(("package", "measure"), TABLE)
def test_the_number_is_that_of_the_package(package, measure):
    found = TABLE[package, measure]().flatten().tolist()
    assert found == pytest.approx(np.ravel(GOLDEN[package][measure]).tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("measure", "ours"),
    [
        ("rankme", lambda: rankme(X["z"])),
        ("lidar", lambda: lidar(X["a"])),
        ("alpha_req", lambda: alpha_req(S)),
    ],
)
def test_ours_is_the_papers_and_differs(measure, ours):
    for package in ("reptrix", "stable-pretraining"):
        if measure in GOLDEN[package]:
            assert float(ours()) != pytest.approx(GOLDEN[package][measure], rel=1e-5)


@pytest.mark.parametrize(
    ("call", "choices"),
    [
        (lambda: rankme(X["z"], convention="x"), "paper, reptrix, stable-pretraining"),
        (lambda: lidar(X["a"], convention="x"), "paper, reptrix, stable-pretraining"),
        (lambda: alpha_req(S, convention="x"), "paper, reptrix"),
        (lambda: lid_mom(X["p"], convention="x"), "paper, scikit-dimension"),
        (lambda: lid_mle(X["p"], convention="x"), "paper, scikit-dimension"),
        (lambda: two_nn(X["p"], convention="x"), "fit, mle"),
    ],
)
def test_unknown_conventions(call, choices):
    with pytest.raises(ValueError, match=f"convention must be one of {choices}, got 'x'"):
        call()


def test_reptrix_needs_a_hundred_eigenvalues():
    with pytest.raises(ValueError, match="s must hold 100 singular values for reptrix, got 99"):
        alpha_req(S[:99], convention="reptrix")
