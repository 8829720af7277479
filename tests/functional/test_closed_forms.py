"""Closed-form gradients against autograd of the plain formulas, and the convolution's matrix."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv1d, conv2d, conv3d, conv_transpose2d

from lightly_collapse.functional import orthogonality_penalty, weight_matrix
from lightly_collapse.functional.orthogonality import tracked_spectral_penalties
from lightly_collapse.functional.spectral_norm import initial_basis

CONV = {1: conv1d, 2: conv2d, 3: conv3d}


def weight(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True)


def plain(w: Tensor, kind: str, groups: int = 1) -> Tensor:
    total = torch.zeros((), dtype=w.dtype)
    for m in weight_matrix(w, groups).reshape(groups, -1, w[0].numel()):
        g = m @ m.T if len(m) <= m.shape[1] else m.T @ m
        if kind == "mc":
            norms = g.diagonal().sqrt()
            cosines = g / norms[:, None] / norms
            total = total + (cosines - torch.diag(cosines.diagonal())).abs().max()
            continue
        so = (g - torch.eye(len(g))).square().sum()
        total = total + (so if kind == "so" else 2 * so + abs(len(m) - m.shape[1]))
    return total


SHAPES = [((5, 7), 1), ((7, 5), 1), ((4, 3, 3, 3), 1), ((6, 2, 3), 3), ((12, 1, 2), 2)]


@pytest.mark.parametrize("kind", ["so", "dso", "mc"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_value_and_gradient(shape: tuple[int, ...], groups: int, kind: str) -> None:
    w = weight(*shape)
    ours, theirs = orthogonality_penalty(w, kind, groups), plain(w, kind, groups)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(3 * ours, w)
    (expected,) = torch.autograd.grad(3 * theirs, w)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["so", "dso", "mc", "srip", "conv"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_both_derivatives(shape: tuple[int, ...], groups: int, kind: str) -> None:
    w = weight(*shape)
    assert gradcheck(lambda w: orthogonality_penalty(w, kind, groups), w)
    assert gradgradcheck(lambda w: orthogonality_penalty(w, kind, groups), w)


def test_gradient_may_be_asked_twice_of_one_graph() -> None:
    w = weight(4, 6)
    value = orthogonality_penalty(w, "so")
    first, second = (torch.autograd.grad(value, w, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_weight_changed_in_place_between_the_passes_is_an_error() -> None:
    w = weight(4, 6)
    value = orthogonality_penalty(w, "so")
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# --- convolutional orthogonality ----------------------------------------------------------------


def convolution_matrix(w: Tensor, size: tuple[int, ...], stride, dilation) -> Tensor:  # type: ignore[no-untyped-def]
    """One row an output pixel of a convolution without padding: every filter is whole."""
    inputs = torch.eye(w.shape[1] * torch.Size(size).numel(), dtype=w.dtype)
    outputs = CONV[len(size)](
        inputs.view(-1, w.shape[1], *size), w, stride=stride, dilation=dilation
    )
    return outputs.flatten(1).T


CONVOLUTIONS = [
    ((3, 2, 3), (1,), (1,)),
    ((4, 2, 5), (2,), (1,)),
    ((2, 3, 4), (3,), (1,)),
    ((3, 2, 3), (2,), (2,)),
    ((3, 2, 3), (4,), (3,)),
    ((3, 2, 3, 3), (1, 1), (1, 1)),
    ((5, 2, 3, 2), (2, 1), (1, 1)),
    ((3, 2, 3, 3), (2, 1), (1, 2)),
    ((2, 1, 2, 3, 2), (1, 2, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "stride", "dilation"), CONVOLUTIONS)
def test_is_the_residual_of_the_convolutions_matrix(shape, stride, dilation) -> None:  # type: ignore[no-untyped-def]
    # Rows of the matrix that belong to the central output pixel meet every row they can meet.
    w = weight(*shape).detach()
    kernel = shape[2:]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    outputs = [2 * (r // s) + 1 for r, s in zip(reach, stride, strict=True)]
    size = tuple((o - 1) * s + r + 1 for o, s, r in zip(outputs, stride, reach, strict=True))
    matrix = convolution_matrix(w, size, stride, dilation)
    residual = matrix @ matrix.T - torch.eye(len(matrix), dtype=w.dtype)
    residual = residual.view(shape[0], -1, len(matrix))[:, (len(matrix) // shape[0]) // 2]
    ours = orthogonality_penalty(w, "conv", stride=stride, dilation=dilation)
    torch.testing.assert_close(ours, residual.square().sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_is_the_papers_self_convolution(k: int, stride: int) -> None:
    w = weight(4, 3, k, k)
    padding = (k - 1) // stride * stride
    z = conv2d(w, w, stride=stride, padding=padding)
    target = torch.zeros_like(z)
    target[range(4), range(4), z.shape[2] // 2, z.shape[3] // 2] = 1
    theirs = (z - target).square().sum()
    ours = orthogonality_penalty(w, "conv", stride=stride)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(ours, w)
    (expected,) = torch.autograd.grad(theirs, w)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_of_groups_is_the_sum_over_them() -> None:
    w = weight(6, 2, 3, 3)
    parts = sum(orthogonality_penalty(part, "conv") for part in w.split(2))
    torch.testing.assert_close(orthogonality_penalty(w, "conv", groups=3), parts)


def test_of_a_patch_embedding_is_soft_orthogonality_of_its_rows() -> None:
    w = weight(10, 2, 2, 2)  # more filters than inputs: the rows cannot be orthonormal
    m = w.flatten(1)
    rows = (m @ m.T - torch.eye(10)).square().sum()
    torch.testing.assert_close(orthogonality_penalty(w, "conv", stride=2), rows)


def test_of_an_orthogonal_convolution_is_zero() -> None:
    # A delta in the middle of each kernel, turned by an orthogonal matrix across channels.
    w = torch.zeros(4, 6, 3, 3, dtype=torch.float64)
    w[:, :, 1, 1] = torch.linalg.qr(weight(6, 6).detach()).Q[:4]
    assert orthogonality_penalty(w, "conv").item() < 1e-25
    # Deltas at different taps are orthonormal filters, whose shifts overlap all the same.
    w = torch.zeros(2, 1, 3, dtype=torch.float64)
    w[0, 0, 0] = w[1, 0, 2] = 1
    assert orthogonality_penalty(w, "so").item() == 0
    assert orthogonality_penalty(w, "conv").item() == 2


def test_of_a_transposed_convolution_is_that_of_its_transpose() -> None:
    w = weight(3, 2, 3, 3).detach()
    x = torch.eye(3 * 9, dtype=w.dtype).view(-1, 3, 3, 3)
    matrix = conv_transpose2d(x, w).flatten(1)  # one row an input pixel
    residual = matrix @ matrix.T - torch.eye(len(matrix), dtype=w.dtype)
    ours = orthogonality_penalty(w, "conv", transposed=True)
    # Pairs of input pixels a shift apart have equal entries: one pair of each shift counts.
    pairs = residual.view(3, 3, 3, 3, 3, 3)
    total = torch.zeros((), dtype=w.dtype)
    for a, b in product(range(-2, 3), repeat=2):
        row, column = max(0, -a), max(0, -b)
        total += pairs[:, row, column, :, row + a, column + b].square().sum()
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [0, (1,), (1, 1, 1), (1, -1)])
def test_bad_stride(stride) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"^stride must be at least 1 and one number"):
        orthogonality_penalty(weight(2, 2, 3, 3), "conv", stride=stride)
    with pytest.raises(ValueError, match=r"^dilation must be at least 1 and one number"):
        orthogonality_penalty(weight(2, 2, 3, 3), "conv", dilation=stride)


# --- the tracked spectral norm --------------------------------------------------------------------


def norm(w: Tensor) -> float:
    s = torch.linalg.svdvals(w.detach().double())
    return (s.square() - 1).abs().amax(dim=-1).sum().item()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    groups=st.sampled_from([None, 1, 3]),
    scale=st.sampled_from([1e-6, 0.05, 0.2, 1.0, 30.0]),
    spectrum=st.sampled_from(["random", "orthonormal", "decaying", "zero"]),
    seed=st.integers(0, 2**31),
)
def test_first_call_is_the_norm(rows, columns, groups, scale, spectrum, seed) -> None:  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*([groups] if groups else []), rows, columns, generator=g)
    if spectrum == "orthonormal":
        u, _, v = torch.linalg.svd(w, full_matrices=False)
        w = u @ v
    if spectrum == "decaying":
        w = w * 0.7 ** torch.arange(columns)
    if spectrum == "zero":
        w = w * 0
    w = scale * w
    (penalty,), _ = tracked_spectral_penalties([w], [initial_basis(w)])
    assert penalty.isfinite()
    rounding = 1e-5 * (1 + torch.linalg.matrix_norm(w, 2).square().max().item())
    assert penalty.item() == pytest.approx(norm(w), rel=1e-4, abs=rounding * (groups or 1))


@pytest.mark.parametrize("shape", [(96, 200), (200, 96), (64, 147), (256, 256)])
def test_follows_a_moving_weight(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=g) / shape[1] ** 0.5
    bases = [initial_basis(w)]
    (penalty,), bases = tracked_spectral_penalties([w], bases)
    assert penalty.item() == pytest.approx(norm(w), rel=1e-4)
    low = torch.randn(shape[0], 1, generator=g) @ torch.randn(1, shape[1], generator=g)
    for step in range(40):
        # Noise, and a direction that rises from nothing to the largest of all.
        w = w + 1e-3 * w.std() * torch.randn(shape, generator=g) + 2e-3 * w.std() * low
        (penalty,), bases = tracked_spectral_penalties([w], bases)
        if step >= 4:
            assert penalty.item() == pytest.approx(norm(w), rel=0.01)
            assert penalty.item() <= norm(w) * (1 + 1e-5)


def test_notices_another_weight() -> None:
    g = torch.Generator().manual_seed(2)
    first, second = (torch.randn(80, 120, generator=g) / 10 for _ in range(2))
    _, bases = tracked_spectral_penalties([first], [initial_basis(first)])
    (penalty,), _ = tracked_spectral_penalties([second], bases)
    assert penalty.item() == pytest.approx(norm(second), rel=1e-4)


def test_tracked_gradient_is_that_of_the_singular_values() -> None:
    for shape in [(20, 33), (33, 20), (3, 4, 9), (2, 30, 12)]:
        w = (weight(*shape, seed=3).detach() / 5).requires_grad_()
        bases = [initial_basis(w)]
        for _ in range(30):  # until the vectors, and not only their values, are found
            (penalty,), bases = tracked_spectral_penalties([w], bases)
        (gradient,) = torch.autograd.grad(penalty, w)
        exact = (torch.linalg.svdvals(w).square() - 1).abs().amax(dim=-1).sum()
        (expected,) = torch.autograd.grad(exact, w)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_second_derivative_of_the_tracked_norm_is_a_clear_error() -> None:
    w = weight(12, 20)
    (penalty,), _ = tracked_spectral_penalties([w], [initial_basis(w)])
    (gradient,) = torch.autograd.grad(penalty, w, create_graph=True)
    with pytest.raises(RuntimeError, match="tracked srip penalty cannot be differentiated"):
        gradient.sum().backward()
