"""Orthogonality of weights: how far a layer's filters are from orthonormal.

W is a (filters, fan_in) matrix with singular values s_1 >= ... >= s_r, r = min(filters, fan_in),
and G the Gram matrix of its smaller side: W W^T where filters <= fan_in, else W^T W. More filters
than inputs cannot be orthonormal; the smaller side always can, and for the squared penalties the
choice of side only adds a constant.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightly_collapse.functional._check import as_float
from lightly_collapse.functional._unit import unit_rows


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
    w: Tensor, kind: str = "so", groups: int = 1, transposed: bool = False
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

    Args:
        w: a matrix (filters, fan_in) or the weight of a layer in any shape `weight_matrix` takes;
            half types are computed in float32.
        kind: `so`, `dso`, `mc` or `srip`.
        groups: number of groups of a convolution; the penalties of its groups are added up.
        transposed: whether `w` is the weight of a transposed convolution.

    Returns:
        A scalar, with a gradient.

    Raises:
        ValueError: if `kind` is unknown, or `w` or `groups` are not as `weight_matrix` asks.

    Source: Bansal, Chen and Wang, NeurIPS 2018, arXiv 1810.09102, sections 3.1 to 3.4 (all four);
    He, Du and Ma, NeurIPS 2024, arXiv 2411.00392 (SO and SRIP in self-supervised learning).

    Examples:
        >>> orthogonality_penalty(torch.eye(3, 5), "so")
        tensor(0.)
        >>> orthogonality_penalty(2 * torch.eye(3, 5), "srip")
        tensor(3.)
    """
    check_kind(kind)
    w = as_float(weight_matrix(w, groups, transposed))
    with torch.autocast(w.device.type, enabled=False):
        return _PENALTIES[kind](w if w.ndim == 3 else w[None]).sum()


def _gram(w: Tensor) -> Tensor:
    return w @ w.mT if w.shape[-2] <= w.shape[-1] else w.mT @ w


def _so(w: Tensor) -> Tensor:
    g = _gram(w)
    return (g - torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)).square().sum(dim=(-2, -1))


def _dso(w: Tensor) -> Tensor:
    # ||W^T W - I||^2 and ||W W^T - I||^2 differ by the difference of the sides.
    return 2 * _so(w) + abs(w.shape[-2] - w.shape[-1])


def _mc(w: Tensor) -> Tensor:
    if w.shape[-2] > w.shape[-1]:
        w = w.mT
    rows = unit_rows(w)
    g = rows @ rows.mT
    return (g - torch.diag_embed(g.diagonal(dim1=-2, dim2=-1))).abs().amax(dim=(-2, -1))


def _srip(w: Tensor) -> Tensor:
    s: Tensor = torch.linalg.svdvals(w)
    return (s.square() - 1).abs().amax(dim=-1)


_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "so": _so,
    "dso": _dso,
    "mc": _mc,
    "srip": _srip,
}


def check_kind(kind: str) -> None:
    """Raise a ValueError unless `kind` names a penalty."""
    if kind not in _PENALTIES:
        raise ValueError(f"kind must be one of {', '.join(_PENALTIES)}, got {kind!r}")
