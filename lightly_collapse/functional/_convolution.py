"""Convolutional orthogonality: the penalty on a convolution's matrix, from its kernel alone.

Two filters of a convolution meet wherever their shifted supports overlap. With K_i the i-th filter
and T_j[a, b] = sum_p <K_a[p], K_b[p + j]> for a shift of j taps, the penalty is

    ||conv(K, K) - I_0||_F^2 = ||T_0 - I||_F^2 + 2 sum_{j > 0} ||T_j||_F^2,

the sum over half of the shifts, since T_{-j} is the transpose of T_j. Each T_j is one matrix
product over the taps that overlap, where a convolution would multiply the zeros around them too.
"""

from itertools import product

import torch
from torch import Tensor
from torch.library import custom_op

_Shifts = list[tuple[int, ...]]
_Taps = tuple[slice, ...]


def shifts(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Shifts, in taps, at which a stride lets a kernel meet itself; zero first, then half of them.

    Args:
        kernel: size of the kernel, by dimension.
        stride: stride of the convolution.
        dilation: dilation of the convolution; a shift of j taps is one of j * dilation pixels, and
            outputs are multiples of the stride apart.

    Returns:
        The shifts that are zero or lexicographically positive.

    Examples:
        >>> shifts((3,), (1,), (1,)), shifts((3,), (2,), (1,)), shifts((16,), (16,), (1,))
        ([(0,), (1,), (2,)], [(0,), (2,)], [(0,)])
    """
    by_dimension = [
        [j for j in range(1 - k, k) if j * d % s == 0]
        for k, s, d in zip(kernel, stride, dilation, strict=True)
    ]
    zero = (0,) * len(kernel)
    return [j for j in product(*by_dimension) if j >= zero]


def value_and_overlaps(w: Tensor, found: _Shifts) -> tuple[Tensor, Tensor]:
    """The penalty and what its gradient needs; differentiable, but not under a compiler.

    Args:
        w: (groups, filters, in, *kernel).
        found: what `shifts` gave.

    Returns:
        The penalty, summed over groups, and (shifts, groups, filters, filters): T_0 - I, T_j, ...
    """
    if torch.compiler.is_compiling():
        value, overlaps = _compiled_value(w, _flat(found))
        return value, overlaps
    return _value_and_overlaps(w, found)


def gradient(w: Tensor, overlaps: Tensor, grad: Tensor, found: _Shifts) -> Tensor:
    """Of ||A B^T||^2 with respect to A it is 2 T B, with respect to B 2 T^T A."""
    if torch.compiler.is_compiling():
        return _compiled_gradient(w, overlaps, grad, _flat(found))
    return _gradient(w, overlaps, grad, found)


def _value_and_overlaps(w: Tensor, found: _Shifts) -> tuple[Tensor, Tensor]:
    v = w.movedim(2, -1)
    overlaps = []
    for j in found:
        here, there = _overlap(v.shape[2:-1], j)
        overlaps.append(v[here].flatten(2) @ v[there].flatten(2).mT)
    overlaps[0] = overlaps[0] - torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    squares = torch.stack([torch.linalg.vector_norm(t).square() for t in overlaps])
    return 2 * squares.sum() - squares[0], torch.stack(overlaps)


def _gradient(w: Tensor, overlaps: Tensor, grad: Tensor, found: _Shifts) -> Tensor:
    v = w.movedim(2, -1)
    result = torch.zeros_like(v, memory_format=torch.contiguous_format)
    overlaps = (4 * grad) * overlaps
    for j, t in zip(found, overlaps.unbind(), strict=True):
        here, there = _overlap(v.shape[2:-1], j)
        a, b = v[here], v[there]
        result[here] += (t @ b.flatten(2)).view(a.shape)
        if any(j):
            result[there] += (t.mT @ a.flatten(2)).view(b.shape)
    return result.movedim(-1, 2)


def _overlap(kernel: tuple[int, ...], shift: tuple[int, ...]) -> tuple[_Taps, _Taps]:
    """The taps p of a kernel, and the taps p + shift, at which both are inside."""
    here = tuple(slice(max(0, -j), k - max(0, j)) for k, j in zip(kernel, shift, strict=True))
    there = tuple(slice(max(0, j), k - max(0, -j)) for k, j in zip(kernel, shift, strict=True))
    return (slice(None), slice(None), *here), (slice(None), slice(None), *there)


# Operators of their own: a compiler that unrolls every product of every shift of every layer takes
# minutes for two layers, and there is nothing in them to fuse.


def _flat(found: _Shifts) -> list[int]:
    return [taps for shift in found for taps in shift]


def _by_dimension(w: Tensor, flat: list[int]) -> _Shifts:
    dimensions = w.ndim - 3
    return [tuple(flat[i : i + dimensions]) for i in range(0, len(flat), dimensions)]


@custom_op(
    "lightly_collapse::kernel_overlaps",
    mutates_args=(),
    schema="(Tensor w, int[] shifts) -> (Tensor, Tensor)",
)
def _compiled_value(w: Tensor, shifts: list[int]) -> tuple[Tensor, Tensor]:
    return _value_and_overlaps(w, _by_dimension(w, shifts))


@_compiled_value.register_fake
def _(w: Tensor, shifts: list[int]) -> tuple[Tensor, Tensor]:
    groups, filters = w.shape[:2]
    return w.new_empty(()), w.new_empty(len(shifts) // (w.ndim - 3), groups, filters, filters)


@custom_op(
    "lightly_collapse::kernel_overlaps_gradient",
    mutates_args=(),
    schema="(Tensor w, Tensor overlaps, Tensor grad, int[] shifts) -> Tensor",
)
def _compiled_gradient(w: Tensor, overlaps: Tensor, grad: Tensor, shifts: list[int]) -> Tensor:
    return _gradient(w, overlaps, grad, _by_dimension(w, shifts))


@_compiled_gradient.register_fake
def _(w: Tensor, overlaps: Tensor, grad: Tensor, shifts: list[int]) -> Tensor:
    return w.new_empty(w.movedim(2, -1).shape).movedim(-1, 2)
