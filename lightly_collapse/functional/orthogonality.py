"""Orthogonality of weights: how far a layer's filters are from orthonormal.

W is a (filters, fan_in) matrix with singular values s_1 >= ... >= s_r, r = min(filters, fan_in),
and G the Gram matrix of its smaller side: W W^T where filters <= fan_in, else W^T W. More filters
than inputs cannot be orthonormal; the smaller side always can, and for the squared penalties the
choice of side only adds a constant.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse._checks import as_float, unit_rows
from lightly_collapse.functional._convolution import gradient as conv_gradient
from lightly_collapse.functional._convolution import shifts as conv_shifts
from lightly_collapse.functional._convolution import value_and_overlaps
from lightly_collapse.functional.gram import gram
from lightly_collapse.functional.spectral_norm import track

PenaltyKind = Literal["so", "dso", "mc", "srip", "conv", "norms", "shape"]
"""The penalties of `orthogonality_penalty`."""


def weight_matrix(p: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """The weight of a layer as a matrix with one row per filter.

    Args:
        p: (out, in / groups, *kernel) weight of a convolution or linear layer; for a transposed
            convolution (in, out / groups, *kernel).
        groups: number of groups of the convolution.
        transposed: whether `p` is the weight of a transposed convolution.

    Returns:
        (filters, fan_in), or (groups, filters / groups, fan_in) where `groups` is above 1: filters
        of different groups see different inputs, so their inner products mean nothing.

    Raises:
        ValueError: if `p` has fewer than two dimensions or no entry, or its first dimension does
            not divide by `groups`.

    Source: He, Du and Ma, NeurIPS 2024, arXiv 2411.00392: a kernel is read as one vector per
    filter.

    Examples:
        >>> weight_matrix(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
        >>> weight_matrix(torch.zeros(8, 1, 5, 5), groups=4).shape
        torch.Size([4, 2, 25])
    """
    if p.ndim < 2 or p.numel() == 0:
        raise ValueError(
            f"p must have two dimensions or more and no empty one, got shape {tuple(p.shape)}"
        )
    if groups < 1 or p.shape[0] % groups:
        raise ValueError(f"groups must divide the first dimension of p, {p.shape[0]}, got {groups}")
    p = p.reshape(groups, -1, *p.shape[1:])
    if transposed:
        p = p.transpose(1, 2)
    matrices = p.flatten(2)
    return matrices if groups > 1 else matrices.squeeze(0)


def orthogonality_penalty(
    w: Tensor,
    kind: PenaltyKind = "so",
    groups: int = 1,
    transposed: bool = False,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """Distance of a weight from orthonormal filters.

    | kind   | penalty                                          | by singular values            |
    | ------ | ------------------------------------------------ | ----------------------------- |
    | `so`   | soft orthogonality, the squared norm of G - I    | sum_i (s_i^2 - 1)^2           |
    | `dso`  | double-sided: that of both Gram matrices         | 2 SO + abs(filters - fan_in)  |
    | `mc`   | mutual coherence: largest off-diagonal entry, in | (no function of them)         |
    |        | magnitude, of G with unit diagonal               |                               |
    | `srip` | spectral restricted isometry: the spectral norm  | max_i abs(s_i^2 - 1)          |
    |        | of G - I                                         |                               |
    | `conv` | convolutional orthogonality: the squared norm of | (those of the convolution)    |
    |        | conv(K, K) - I_0                                 |                               |
    | `norms`| the diagonal of G - I alone: the norms of the    | (no function of them)         |
    |        | filters, whatever their angles                   |                               |
    | `shape`| `so` of the weight rescaled to mean squared      | sum_i (s_i^2 / m - 1)^2, m    |
    |        | singular value 1: no matter what its scale       | the mean of s_j^2             |

    `norms` and `shape` take the two effects of `so` apart, as controls of an experiment: the first
    sets the scale of the weight and leaves its filters' angles, the second the other way round.

    `conv` compares the filters of a convolution at every shift at which they meet: the shifts by
    multiples of the stride up to P = floor((k - 1) / stride) stride, whatever the padding of the
    layer, which only cuts filters at the border. A linear layer, and a convolution whose stride is
    not below its kernel, such as a patch embedding, has the shift zero alone; there `conv` is the
    squared norm of W W^T - I. A transposed convolution is the transpose of the convolution with
    the same kernel, and is compared as that.

    Args:
        w: a matrix (filters, fan_in) or the weight of a layer in any shape `weight_matrix` takes;
            half types are computed in float32.
        kind: `so`, `dso`, `mc`, `srip`, `conv`, `norms` or `shape`.
        groups: number of groups of a convolution; the penalties of its groups are added up.
        transposed: whether `w` is the weight of a transposed convolution.
        stride: stride of a convolution, for `conv`.
        dilation: dilation of a convolution, for `conv`.

    Returns:
        A scalar, with a gradient that can be differentiated again.

    Raises:
        ValueError: if `kind` is unknown, `w` or `groups` are not as `weight_matrix` asks, or
            `stride` or `dilation` is below 1 or not one number, or one a dimension of the kernel.

    Source: Bansal, Chen and Wang, NeurIPS 2018, arXiv 1810.09102, sections 3.1 to 3.4 (the first
    four); Wang, Chen, Chakraborty and Yu, CVPR 2020, arXiv 1911.12207, equations 6 and 7 (`conv`);
    He, Du and Ma, NeurIPS 2024, arXiv 2411.00392 (SO and SRIP in self-supervised learning).

    Examples:
        >>> orthogonality_penalty(torch.eye(3, 5), "so")
        tensor(0.)
        >>> orthogonality_penalty(2 * torch.eye(3, 5), "srip")
        tensor(3.)
        >>> orthogonality_penalty(torch.ones(1, 1, 3), "conv")  # (3 - 1)^2 + 2 (2^2 + 1^2)
        tensor(14.)
    """
    check_kind(kind)
    matrix = as_float(weight_matrix(w, groups, transposed))
    with torch.autocast(w.device.type, enabled=False):
        if kind == "srip":
            s: Tensor = torch.linalg.svdvals(matrix)
            return (s.square() - 1).abs().amax(dim=-1).sum()
        if kind == "conv":
            return _convolutional(as_float(w), groups, transposed, stride, dilation)
        return _ClosedForm.apply(matrix, kind)


def towards_orthonormal(w: Tensor) -> Tensor:
    """(G - I) W, the direction in which `so` rises: its gradient over 4.

    Args:
        w: (..., filters, fan_in), float32 or float64; G is the Gram matrix of the smaller side.

    Returns:
        The same shape; zero where the filters are orthonormal.

    Examples:
        >>> towards_orthonormal(2 * torch.eye(2))
        tensor([[6., 0.],
                [0., 6.]])
    """
    return _so_gradient(w, _so_residual(w), w.new_tensor(0.25))


def tracked_spectral_penalties(
    matrices: list[Tensor], bases: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """`srip` of many weights by matrix-vector products, from the vectors of the last call.

    Args:
        matrices: (..., filters, fan_in) weights, float32 or float64.
        bases: for each the basis of `initial_basis` or of the last call.

    Returns:
        The penalties, scalars with a gradient, and the bases for the next call. A penalty is never
        above the true one but for rounding.

    Raises:
        RuntimeError: if the gradient is differentiated again; `orthogonality_penalty` allows it.

    Examples:
        >>> from lightly_collapse.functional.spectral_norm import initial_basis
        >>> w = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
        >>> penalties, bases = tracked_spectral_penalties([w], [initial_basis(w)])
        >>> round(penalties[0].item(), 4)
        3.0
    """
    with torch.no_grad(), torch.autocast(matrices[0].device.type, enabled=False):
        u, y, bases = track([m.detach() for m in matrices], bases)
    penalties = [_RayleighQuotient.apply(*found) for found in zip(matrices, u, y, strict=True)]
    return penalties, bases


class _RayleighQuotient(torch.autograd.Function):
    """abs(|W^T u|^2 / |u|^2 - 1), whose gradient at an eigenvector u is one outer product."""

    @staticmethod
    @override
    def forward(ctx: Any, w: Tensor, u: Tensor, y: Tensor) -> Tensor:
        square = u.square().sum(dim=-2, keepdim=True)
        quotient = y.square().sum(dim=-2, keepdim=True) / square - 1
        ctx.save_for_backward(w, 2 * quotient.sign() / square * u, y)
        return quotient.abs().sum()

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        w, u, y = ctx.saved_tensors
        u = grad * u
        gradient = u @ y.mT if w.shape[-2] <= w.shape[-1] else y @ u.mT
        if torch.is_grad_enabled():
            gradient = _OnlyOnce.apply(gradient, w)
        return gradient, None, None


class _OnlyOnce(torch.autograd.Function):
    """A gradient that would be taken for a constant, were it differentiated."""

    @staticmethod
    @override
    def forward(ctx: Any, gradient: Tensor, w: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "the gradient of a tracked srip penalty cannot be differentiated: its vectors are "
            "constants; use lightly_collapse.functional.orthogonality_penalty(w, 'srip')"
        )


class _ClosedForm(torch.autograd.Function):
    """A penalty with its gradient written down: no graph of matrix products is kept."""

    @staticmethod
    @override
    def forward(ctx: Any, w: Tensor, kind: str, *settings: Any) -> Tensor:
        value, state = _CLOSED_FORMS[kind][0](w, *settings)
        ctx.save_for_backward(w, state)
        ctx.kind, ctx.settings = kind, settings
        return value

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, state = ctx.saved_tensors
        value_and_state, gradient = _CLOSED_FORMS[ctx.kind]
        if torch.is_grad_enabled():  # the gradient is to be differentiated: so must the state be
            _, state = value_and_state(w, *ctx.settings)
        return gradient(w, state, grad, *ctx.settings), None, *(None for _ in ctx.settings)


def _so_residual(w: Tensor) -> Tensor:
    """G - I."""
    rows = w.mT if w.shape[-2] <= w.shape[-1] else w
    g = gram(rows.detach()) if w.ndim == 2 and not torch.is_grad_enabled() else rows.mT @ rows
    g.diagonal(dim1=-2, dim2=-1).sub_(1)
    return g


def _so(w: Tensor) -> tuple[Tensor, Tensor]:
    g = _so_residual(w)
    return torch.dot(g.flatten(), g.flatten()), g


def _so_gradient(w: Tensor, residual: Tensor, grad: Tensor) -> Tensor:
    """4 (W W^T - I) W, the smaller of the two products that equal it."""
    residual = (4 * grad) * residual
    return residual @ w if w.shape[-2] <= w.shape[-1] else w @ residual


def _dso(w: Tensor) -> tuple[Tensor, Tensor]:
    # ||W^T W - I||^2 and ||W W^T - I||^2 differ by the difference of the sides.
    value, residual = _so(w)
    groups = w.shape[0] if w.ndim == 3 else 1
    return 2 * value + groups * abs(w.shape[-2] - w.shape[-1]), residual


def _dso_gradient(w: Tensor, residual: Tensor, grad: Tensor) -> Tensor:
    return _so_gradient(w, residual, 2 * grad)


def _mc(w: Tensor) -> tuple[Tensor, Tensor]:
    vectors = w if w.shape[-2] <= w.shape[-1] else w.mT
    unit = unit_rows(vectors)
    g = (unit @ unit.mT).abs()
    g.diagonal(dim1=-2, dim2=-1).zero_()
    coherence, index = g.flatten(-2).max(dim=-1)
    return coherence.sum(), torch.stack([index // g.shape[-1], index % g.shape[-1]])


def _mc_gradient(w: Tensor, pair: Tensor, grad: Tensor) -> Tensor:
    """Of the cosine c between rows a and b: (b/|b| - c a/|a|) / |a|, and likewise for b."""
    vectors = w if w.shape[-2] <= w.shape[-1] else w.mT
    vectors = vectors if vectors.ndim == 3 else vectors[None]
    group = torch.arange(vectors.shape[0], device=w.device)
    a, b = pair = pair.view(2, -1)
    unit = unit_rows(vectors[group, pair])
    length = (unit * vectors[group, pair]).sum(dim=-1, keepdim=True)
    length = torch.where(length > 0, length, 1)
    cosine = (unit[0] * unit[1]).sum(dim=-1, keepdim=True)
    slope = grad * torch.where((a != b)[:, None], cosine.sign(), 0)
    result = torch.zeros_like(vectors)
    result[group, a] = slope * (unit[1] - cosine * unit[0]) / length[0]
    result[group, b] = slope * (unit[0] - cosine * unit[1]) / length[1]
    result = result if w.ndim == 3 else result[0]
    return result if w.shape[-2] <= w.shape[-1] else result.mT


def _norms(w: Tensor) -> tuple[Tensor, Tensor]:
    side = -1 if w.shape[-2] <= w.shape[-1] else -2
    residual = w.square().sum(dim=side, keepdim=True) - 1
    return residual.square().sum(), residual


def _norms_gradient(w: Tensor, residual: Tensor, grad: Tensor) -> Tensor:
    return (4 * grad) * residual * w


def _shape(w: Tensor) -> tuple[Tensor, Tensor]:
    """||r G / tr G - I||^2; 0 for a weight of zeros, which has no shape."""
    unit, norm = _unit(w)
    g = unit @ unit.mT if w.shape[-2] <= w.shape[-1] else unit.mT @ unit
    residual = g.shape[-1] * g - torch.eye(g.shape[-1], dtype=w.dtype, device=w.device)
    residual = residual * (norm > 0)
    return residual.square().sum(), residual


def _shape_gradient(w: Tensor, residual: Tensor, grad: Tensor) -> Tensor:
    """4 r (E - (|E|^2 / r) I) W / |W|^2, with E = r G / tr G - I: orthogonal to W itself."""
    r = residual.shape[-1]
    mean = residual.square().sum(dim=(-2, -1), keepdim=True) / r
    inner = residual - mean * torch.eye(r, dtype=w.dtype, device=w.device)
    unit, norm = _unit(w)
    unit = unit * (4 * grad * r) / torch.where(norm > 0, norm, 1)
    return inner @ unit if w.shape[-2] <= w.shape[-1] else unit @ inner


def _unit(w: Tensor) -> tuple[Tensor, Tensor]:
    """W / |W| and |W|, in two steps: the squares of the entries need not be representable."""
    largest = w.abs().amax(dim=(-2, -1), keepdim=True)
    scaled = w / torch.where(largest > 0, largest, 1)
    norm = scaled.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    return scaled / torch.where(norm > 0, norm, 1), norm * largest


def _convolutional(
    w: Tensor,
    groups: int,
    transposed: bool,
    stride: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
) -> Tensor:
    kernel = tuple(w.shape[2:])
    shifts = conv_shifts(
        kernel,
        _one_each(stride, len(kernel), "stride"),
        _one_each(dilation, len(kernel), "dilation"),
    )
    value: Tensor
    if len(shifts) > 1:
        filters = w.reshape(groups, -1, *w.shape[1:])
        value = _ClosedForm.apply(filters, "conv", shifts)
        return value
    matrix = weight_matrix(w, groups)
    value = _ClosedForm.apply(matrix, "so")
    return value + groups * max(0, matrix.shape[-2] - matrix.shape[-1])


def _one_each(value: int | tuple[int, ...], number: int, name: str) -> tuple[int, ...]:
    values = (value,) * number if isinstance(value, int) else tuple(value)
    if len(values) != number or any(v < 1 for v in values):
        raise ValueError(
            f"{name} must be at least 1 and one number, or one for each of the {number} "
            f"dimension(s) of the kernel, got {value}"
        )
    return values


_CLOSED_FORMS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]] = {
    "so": (_so, _so_gradient),
    "dso": (_dso, _dso_gradient),
    "mc": (_mc, _mc_gradient),
    "conv": (value_and_overlaps, conv_gradient),
    "norms": (_norms, _norms_gradient),
    "shape": (_shape, _shape_gradient),
}
KINDS: tuple[PenaltyKind, ...] = get_args(PenaltyKind)


def check_kind(kind: str) -> None:
    """Raise a ValueError unless `kind` names a penalty."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
