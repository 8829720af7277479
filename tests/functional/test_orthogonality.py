import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightly_collapse.functional import orthogonality_penalty, weight_matrix
from tests.helpers import dtypes, gradient, leaf, normal, orthonormal, seeds

KINDS = ("so", "dso", "mc", "srip", "norms", "shape")
SHAPES = [(6, 10), (10, 6), (7, 7), (1, 9), (9, 1), (1, 1)]  # filters below, above, as fan_in


def closed_form(w: np.ndarray, kind: str) -> float:
    """From the singular values alone, but for mutual coherence, which is no function of them."""
    s = np.linalg.svd(w, compute_uv=False)
    if kind == "so":
        return float(((s**2 - 1) ** 2).sum())
    if kind == "dso":  # both Gram matrices, one by one, the larger with zeros for eigenvalues
        return sum(float(((np.pad(s**2, (0, side - len(s))) - 1) ** 2).sum()) for side in w.shape)
    if kind == "srip":
        return float(np.abs(s**2 - 1).max())
    if kind == "shape":
        mean = float((s**2).mean())
        return float(((s**2 / mean - 1) ** 2).sum()) if mean > 0 else 0.0
    v = w if w.shape[0] <= w.shape[1] else w.T
    if kind == "norms":
        return sum((float(filt @ filt) - 1) ** 2 for filt in v)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    v = v / np.where(norms > 0, norms, 1)
    return max((abs(float(v[i] @ v[j])) for i in range(len(v)) for j in range(i)), default=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_is_the_closed_form(kind: str, shape: tuple[int, int]) -> None:
    w = normal(*shape, seed=4)
    exact = closed_form(w.numpy(), kind)
    assert orthogonality_penalty(w, kind).item() == pytest.approx(exact, rel=1e-10, abs=1e-12)
    single = orthogonality_penalty(w.float(), kind)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_so_gradient_is_the_closed_form(shape: tuple[int, int]) -> None:
    w = leaf(normal(*shape, seed=5))
    exact = 4 * (w @ w.T @ w - w).detach()
    torch.testing.assert_close(gradient(orthogonality_penalty(w, "so"), w), exact)
    torch.testing.assert_close(gradient(orthogonality_penalty(w, "dso"), w), 2 * exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_and_shape_take_scale_and_angles_apart(shape: tuple[int, int]) -> None:
    w = leaf(normal(*shape, seed=5))
    # The gradient of `shape` is orthogonal to the weight: no step along it changes the scale.
    slope = gradient(orthogonality_penalty(w, "shape"), w)
    assert (slope * w).sum().item() == pytest.approx(0, abs=1e-10)
    for factor in (1e-3, 20.0):
        scaled = orthogonality_penalty(factor * w, "shape")
        torch.testing.assert_close(scaled, orthogonality_penalty(w, "shape"))
    # That of `norms` is along each filter: no step along it changes an angle.
    filters = w.detach() if shape[0] <= shape[1] else w.detach().T
    slope = gradient(orthogonality_penalty(w, "norms"), w)
    slope = slope if shape[0] <= shape[1] else slope.T
    exact = 4 * (filters.square().sum(dim=1, keepdim=True) - 1) * filters
    torch.testing.assert_close(slope, exact)
    # SO is `norms` and the squared inner products of different filters.
    gram = filters @ filters.T
    apart = (gram - gram.diag().diag()).square().sum()
    so, norms = (orthogonality_penalty(w, kind) for kind in ("so", "norms"))
    torch.testing.assert_close(so.detach(), norms.detach() + apart)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [3.0, 0.1])  # the largest, the smallest singular value decides
def test_srip_gradient_is_the_closed_form(shape: tuple[int, int], scale: float) -> None:
    w = leaf(scale * normal(*shape, seed=6))
    u, s, vh = torch.linalg.svd(w.detach(), full_matrices=False)
    i = int((s**2 - 1).abs().argmax())
    exact = (s[i] ** 2 - 1).sign() * 2 * s[i] * torch.outer(u[:, i], vh[i])
    torch.testing.assert_close(gradient(orthogonality_penalty(w, "srip"), w), exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "groups", "transposed"),
    [
        ((4, 6), 1, False),
        ((6, 4), 1, False),
        ((4, 2, 3), 1, False),
        ((4, 2, 2, 2), 2, False),
        ((6, 1, 3, 3), 6, False),
        ((2, 2, 1, 2, 2), 1, False),
        ((4, 3, 2), 1, True),
        ((4, 3, 2, 2), 2, True),
    ],
    ids=str,
)
def test_gradcheck(kind: str, shape: tuple[int, ...], groups: int, transposed: bool) -> None:
    w = leaf(normal(*shape, seed=7))
    assert torch.autograd.gradcheck(
        lambda w: orthogonality_penalty(w, kind, groups, transposed), (w,)
    )


def filters_by_hand(layer: nn.Module) -> list[np.ndarray]:
    """One matrix a group, a row a filter, taken one filter at a time."""
    w = layer.weight.detach().numpy()  # type: ignore[union-attr, operator]
    groups, out = layer.groups, layer.out_channels
    each = out // groups
    if not layer.transposed:
        return [
            np.stack([w[g * each + f].ravel() for f in range(each)]) for g in range(int(groups))
        ]
    read = layer.in_channels // groups  # type: ignore[operator]
    return [
        np.stack([w[g * read : (g + 1) * read, f].ravel() for f in range(each)])
        for g in range(int(groups))
    ]


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, dtype=torch.float64),
    nn.Conv2d(4, 6, 3, dtype=torch.float64),
    nn.Conv3d(2, 3, 2, dtype=torch.float64),
    nn.Conv2d(2, 30, 1, dtype=torch.float64),
    nn.Conv2d(6, 9, 3, groups=3, dtype=torch.float64),
    nn.Conv2d(6, 6, 3, groups=6, dtype=torch.float64),
    nn.Conv2d(4, 40, 1, groups=2, dtype=torch.float64),
    nn.Conv1d(4, 8, 5, groups=4, dtype=torch.float64),
    nn.ConvTranspose1d(4, 6, 3, dtype=torch.float64),
    nn.ConvTranspose2d(4, 6, 3, dtype=torch.float64),
    nn.ConvTranspose2d(6, 9, 2, groups=3, dtype=torch.float64),
    nn.ConvTranspose2d(4, 4, 2, groups=4, dtype=torch.float64),
    nn.ConvTranspose3d(4, 6, 2, groups=2, dtype=torch.float64),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolutions_are_penalised_group_by_group(kind: str, layer: nn.Module) -> None:
    exact = sum(closed_form(w, kind) for w in filters_by_hand(layer))
    found = orthogonality_penalty(
        layer.weight, kind, groups=layer.groups, transposed=layer.transposed
    )
    assert found.item() == pytest.approx(exact, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_weight_matrix_holds_one_row_a_filter(layer: nn.Module) -> None:
    matrix = weight_matrix(layer.weight, groups=layer.groups, transposed=layer.transposed)
    exact = torch.from_numpy(np.stack(filters_by_hand(layer)))
    torch.testing.assert_close(matrix.detach(), exact if layer.groups > 1 else exact[0])


@pytest.mark.parametrize("kind", ["so", "srip", "mc"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthonormal_filters_have_no_penalty(kind: str, shape: tuple[int, int]) -> None:
    w = leaf(orthonormal(*shape))
    penalty = orthogonality_penalty(w, kind)
    assert penalty.item() == pytest.approx(0, abs=1e-14)
    # A penalty that is squared is flat there; one that is not has a kink, where any slope will do.
    assert gradient(penalty, w).isfinite().all()
    assert gradient(orthogonality_penalty(w, "so"), w).abs().max() < 1e-13
    assert orthogonality_penalty(torch.eye(*shape), kind).item() == 0


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=seeds)
def test_so_zero_and_rotation(rows: int, columns: int, seed: int) -> None:
    assert orthogonality_penalty(orthonormal(rows, columns, seed), "so") < 1e-24
    assert orthogonality_penalty(orthonormal(rows, columns, seed), "srip") < 1e-12
    w = normal(rows, columns, seed=seed)
    turned = orthonormal(rows, rows, seed + 1) @ w @ orthonormal(columns, columns, seed + 2)
    for kind in ("so", "dso", "srip"):
        torch.testing.assert_close(
            orthogonality_penalty(turned, kind), orthogonality_penalty(w, kind)
        )


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    dtype=dtypes,
    log_scale=st.integers(-6, 6),
    seed=seeds,
)
def test_finite_at_any_shape_dtype_and_scale(
    rows: int, columns: int, dtype: torch.dtype, log_scale: int, seed: int
) -> None:
    if dtype == torch.float16:  # ends at 65504: SO's slope is of order w^3, that of MC 1 / w
        log_scale = max(-2, min(log_scale, 0))
    w = leaf((normal(rows, columns, seed=seed) * 10.0**log_scale).to(dtype))
    for kind in KINDS:
        penalty = orthogonality_penalty(w, kind)
        assert penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert penalty.isfinite()
        assert penalty >= 0
        slope = gradient(penalty, w)
        assert slope.dtype == dtype
        assert slope.isfinite().all()
        if dtype in (torch.float16, torch.bfloat16):  # computed in float32, not in the half type
            torch.testing.assert_close(penalty, orthogonality_penalty(w.float(), kind))


@given(seed=seeds, log_scale=st.integers(-100, 60))
def test_mutual_coherence_does_not_depend_on_the_scale(seed: int, log_scale: int) -> None:
    w = normal(5, 8, seed=seed, dtype=torch.float32)
    scaled = leaf(w * 2.0**log_scale)
    penalty = orthogonality_penalty(scaled, "mc")
    torch.testing.assert_close(penalty, orthogonality_penalty(w, "mc"))
    assert gradient(penalty, scaled).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(4, 6),
        torch.zeros(6, 4),
        torch.ones(4, 6),
        normal(1, 6).repeat(4, 1),
        torch.diag(torch.tensor([1.0, 1.0, 0.0])),
        torch.full((4, 6), 1e4),
        torch.full((4, 6), 1e-20),
    ],
)
def test_degenerate_weights(kind: str, w: Tensor) -> None:
    w = leaf(w)
    penalty = orthogonality_penalty(w, kind)
    exact = closed_form(w.detach().double().numpy(), kind)
    assert penalty.item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert gradient(penalty, w).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_gives_the_float32_value_and_gradient(kind: str) -> None:
    w = leaf(normal(16, 24, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        penalty = orthogonality_penalty(w, kind)
    inside = gradient(penalty, w)
    outside = orthogonality_penalty(w, kind)
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, outside, rtol=0, atol=0)
    torch.testing.assert_close(inside, gradient(outside, w), rtol=0, atol=0)


def test_descending_any_penalty_orthogonalises() -> None:
    for kind in ("so", "srip"):
        w = leaf(0.3 * normal(6, 10))
        for step in range(1500):
            rate = 0.02 if kind == "so" else 0.1 / (1 + 0.1 * step)
            w = leaf(w - rate * gradient(orthogonality_penalty(w, kind), w))
        torch.testing.assert_close(
            torch.linalg.svdvals(w.detach()), torch.ones(6, dtype=w.dtype), rtol=0, atol=0.02
        )


def test_bad_input() -> None:
    for p in (torch.zeros(4), torch.zeros(()), torch.zeros(0, 4), torch.zeros(4, 0)):
        with pytest.raises(ValueError, match=r"^p must"):
            weight_matrix(p)
        with pytest.raises(ValueError, match=r"^p must"):
            orthogonality_penalty(p)
    for groups in (3, 0, -1):
        with pytest.raises(ValueError, match=r"^groups must"):
            weight_matrix(torch.zeros(4, 2), groups=groups)
    for kind in ("", "SO", "l2"):
        with pytest.raises(ValueError, match=r"^kind must be one of so, dso, mc, srip"):
            orthogonality_penalty(torch.zeros(4, 4), kind)


def test_known_values() -> None:
    w = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    assert orthogonality_penalty(w, "so").item() == 9 + 64
    assert orthogonality_penalty(w, "dso").item() == 9 + 64 + 9 + 64 + 1
    assert orthogonality_penalty(w, "srip").item() == 8
    assert orthogonality_penalty(w, "mc").item() == 0
    half = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    assert orthogonality_penalty(half, "mc").item() == pytest.approx(math.sqrt(0.5))
