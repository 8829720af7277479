"""The spectral norm of G - I by matrix-vector products, tracked while the weight moves.

The algorithm is LOBPCG without preconditioner (Knyazev, 2001) at both ends of the spectrum, one
step a call. In its symbols, for A = W W^T, whose eigenvalues less one are those of G - I:

    X       Ritz vectors of the outermost eigenvalues, Lambda their Ritz values
    R       A X - X Lambda, the residuals of the outermost two
    P       the last directions of the outermost two: the new X less its part in the old X
    Q       orthonormal basis of span [X, R, P]; Rayleigh-Ritz is Q^T A Q C = C Theta
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

_PER_END = 2  # columns of X at either end: two eigenvalues may change places between calls
_COLUMNS = 2 * _PER_END + 4  # of [X, R, P]
_WHOLE = 32  # sides up to which the basis is that of the whole space, and the norm exact
# Residuals, relative to the spectrum. A value is off by about the square of its vector's residual.
_REPLACED = 0.3  # above: not the weight of the last call; iterate to _FOUND
_FOUND = 1e-3
_LOST = 0.1  # above: the weight moves too fast for one step a call; iterate to _LOST
_ITERATIONS = 300


def initial_basis(w: Tensor) -> Tensor:
    """The empty basis, before the first call.

    Args:
        w: (..., filters, fan_in) weight matrices.

    Returns:
        (..., r, 0) with r = min(filters, fan_in).
    """
    return w.new_empty(*w.shape[:-2], min(w.shape[-2:]), 0)


def _columns(r: int) -> int:
    return r if r <= _WHOLE else _COLUMNS


def _random_basis(w: Tensor) -> Tensor:
    """The same for the same shape, on all devices and processes."""
    r = w.shape[-2]
    generator = torch.Generator().manual_seed(r)
    return torch.randn(*w.shape[:-2], r, _columns(r), generator=generator).to(w)


# Opaque custom operator: the number of steps depends on the data.
@custom_op(
    "lightly_collapse::track_spectral_norm",
    mutates_args=(),
    schema="(Tensor[] weights, Tensor[] bases) -> (Tensor[], Tensor[], Tensor[])",
)
def track(
    weights: list[Tensor], bases: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """One LOBPCG step on G - I of each weight, more where the residual is large.

    A = W W^T, with W transposed where filters > fan_in, is applied as W (W^T v). A Rayleigh
    quotient is never outside the spectrum, so that a value is never above the norm.

    Args:
        weights: (..., filters, fan_in) matrices, float32 or float64, on any devices.
        bases: for each what `initial_basis` gave, or the last call.

    Returns:
        For each weight the vector u, (..., r, 1), at which abs(|W^T u|^2 - |u|^2) / |u|^2 is
        largest, the product W^T u, (..., R, 1), and the basis for the next call.
    """
    rows = [w if w.shape[-2] <= w.shape[-1] else w.mT for w in weights]
    first = [basis.shape[-1] == 0 for basis in bases]
    started = [_random_basis(w) if new else b for w, b, new in zip(rows, bases, first, strict=True)]
    found = _steps(rows, started)
    # One transfer from the device, not one a layer.
    residuals = torch.stack([step.residual.to(found[0].residual) for step in found])
    for i, residual in enumerate(residuals.tolist()):
        goal = _FOUND if first[i] or residual > _REPLACED else _LOST
        for _ in range(_ITERATIONS):
            if found[i].residual <= goal:
                break
            found[i] = _steps([rows[i]], [found[i].basis])[0]
    # Contiguous, as the compiler was promised below.
    u, y, basis = ([t.contiguous() for t in ts] for ts in list(zip(*found, strict=True))[:3])
    return u, y, basis


@track.register_fake
def _(
    weights: list[Tensor], bases: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    sides = [(*w.shape[:-2], *sorted(w.shape[-2:])) for w in weights]
    u = [w.new_empty(*s[:-1], 1) for w, s in zip(weights, sides, strict=True)]
    y = [w.new_empty(*s[:-2], s[-1], 1) for w, s in zip(weights, sides, strict=True)]
    return (
        u,
        y,
        [w.new_empty(*s[:-1], _columns(s[-2])) for w, s in zip(weights, sides, strict=True)],
    )


class _Step(NamedTuple):
    u: Tensor
    y: Tensor
    basis: Tensor
    residual: Tensor


class _Ritz(NamedTuple):
    """Solutions of the small eigenvalue problems of one shape, stacked over the weights."""

    on_q: Tensor  # (..., c, 1 + ends + 4): C of [u, X, P, X Lambda], to multiply Q from the right
    on_y: Tensor  # (..., c, 3): C of u and of the outermost two of X, to multiply Q^T W
    norm: Tensor  # (..., 1): abs(Theta - 1) of u
    spread: Tensor  # (..., 1): largest less smallest Theta


_ENDS = [0, -1, *range(1, _PER_END), *range(-_PER_END, -1)]


def _steps(weights: list[Tensor], bases: list[Tensor]) -> list[_Step]:
    """One step of each weight; the small eigenvalue problems of all of one shape at once."""
    qs = [torch.linalg.qr(basis).Q for basis in bases]
    # Products with few vectors run up to three times as fast with the vectors as rows.
    ys = [q.mT @ w for w, q in zip(weights, qs, strict=True)]
    grams = [y @ y.mT for y in ys]
    alike: dict[tuple[bool, torch.Size, torch.dtype, torch.device], list[int]] = {}
    for i, (w, g) in enumerate(zip(weights, grams, strict=True)):
        whole = g.shape[-1] == w.shape[-2]
        alike.setdefault((whole, g.shape, g.dtype, g.device), []).append(i)
    steps: dict[int, _Step] = {}
    for (whole, *_), indices in alike.items():
        ritz = _ritz(torch.stack([grams[i] for i in indices]))
        moving, sizes = [], []
        for i, on_q, on_y in zip(indices, ritz.on_q, ritz.on_y, strict=True):
            q_side, y_side = qs[i] @ on_q, on_y.mT @ ys[i]
            u, y = q_side[..., :1], y_side[..., :1, :].mT
            if whole:  # Q spans the whole space: Theta is exact
                steps[i] = _Step(u, y, qs[i], ritz.norm.new_zeros(()))
                continue
            x, p, x_lambda = q_side[..., 1:].split([len(_ENDS), 2, 2], dim=-1)
            residual = (y_side[..., 1:, :] @ weights[i].mT).mT - x_lambda
            rp = torch.cat([residual, p], dim=-1)
            size = torch.linalg.vector_norm(rp, dim=-2, keepdim=True)
            rp /= size.clamp(min=torch.finfo(rp.dtype).tiny)
            sizes.append(size[..., 0, :2])
            moving.append((i, u, y, torch.cat([x, rp], dim=-1)))
        if moving:
            residuals = _relative(torch.stack(sizes), ritz)
            for (i, u, y, basis), residual in zip(moving, residuals, strict=True):
                steps[i] = _Step(u, y, basis, residual)
    return [steps[i] for i in range(len(weights))]


def _ritz(grams: Tensor) -> _Ritz:
    values, vectors = torch.linalg.eigh(grams)
    values = values - 1
    highest = values[..., -1:].abs() > values[..., :1].abs()
    best = torch.where(highest[..., None], vectors[..., -1:], vectors[..., :1])
    norm = torch.where(highest, values[..., -1:], values[..., :1]).abs()
    outermost = vectors[..., [0, -1]]
    p = outermost.clone()
    p[..., : len(_ENDS), :] = 0  # the first columns of Q span the old X
    x_lambda = outermost * (1 + values[..., None, [0, -1]])
    # A basis of fewer columns spans the whole space.
    ends = vectors[..., _ENDS] if vectors.shape[-1] >= len(_ENDS) else outermost
    return _Ritz(
        torch.cat([best, ends, p, x_lambda], dim=-1),
        torch.cat([best, outermost], dim=-1),
        norm,
        values[..., -1:] - values[..., :1],
    )


def _relative(sizes: Tensor, ritz: _Ritz) -> Tensor:
    """The larger residual of the two ends, relative to the spectrum; (weights,)."""
    largest = sizes.amax(dim=-1, keepdim=True)
    # Where G is a multiple of I to rounding, the spectrum is a point and the residual is rounding.
    epsilon, tiny = torch.finfo(sizes.dtype).eps, torch.finfo(sizes.dtype).tiny
    noise = 30 * epsilon * (1 + ritz.norm)
    scale = torch.minimum(ritz.norm, ritz.spread).clamp(min=tiny)
    return ((largest - noise).clamp(min=0) / scale).flatten(1).amax(dim=1)
