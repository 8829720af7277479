"""The spectral norm of G - I by matrix-vector products, tracked while the weight moves."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

_PER_END = 2  # vectors followed at either end of the spectrum, so that one may overtake another
_COLUMNS = 2 * _PER_END + 4  # and of the outermost two the residuals and the last directions
_WHOLE = 32  # sides up to which the basis is that of the whole space, and the norm exact
# Residuals, relative to the spectrum. A value is off by about the square of its vector's residual.
_REPLACED = 0.3  # above: not the weight of the last call; seek to _FOUND
_FOUND = 1e-3
_LOST = 0.1  # above: it moves too fast for one step a call; take more
_ITERATIONS = 300


def initial_basis(w: Tensor) -> Tensor:
    """The basis that stands for none yet.

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
    """One step of a block eigensolver on G - I of each weight, more where the basis has lost it.

    G - I = W W^T - I, with W turned so that filters <= fan_in, is applied as W (W^T v) - v. Both
    ends of its spectrum are sought in the span of the vectors found last, their residuals and
    their last directions (Rayleigh-Ritz; the locally optimal block preconditioned conjugate
    gradient of Knyazev, 2001, without preconditioner), so that a value is never above the norm.

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
    # One question to the device, not one a layer.
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
    """What the small eigenvalue problems of one shape say, stacked over the weights."""

    on_q: Tensor  # (..., c, 1 + ends + 4): the best, the ends, their last directions, (1 + value) x
    on_y: Tensor  # (..., c, 3): the best and the outermost two
    norm: Tensor  # (..., 1) of the best
    spread: Tensor  # (..., 1)


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
            if whole:  # nothing is left to seek
                steps[i] = _Step(u, y, qs[i], ritz.norm.new_zeros(()))
                continue
            x, direction, stays = q_side[..., 1:].split([len(_ENDS), 2, 2], dim=-1)
            residual = (y_side[..., 1:, :] @ weights[i].mT).mT - stays
            moves = torch.cat([residual, direction], dim=-1)
            size = torch.linalg.vector_norm(moves, dim=-2, keepdim=True)
            moves /= size.clamp(min=torch.finfo(moves.dtype).tiny)
            sizes.append(size[..., 0, :2])
            moving.append((i, u, y, torch.cat([x, moves], dim=-1)))
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
    last = outermost.clone()
    last[..., : len(_ENDS), :] = 0
    stays = outermost * (1 + values[..., None, [0, -1]])
    # A basis of fewer columns is that of the whole space: nothing more is sought there.
    ends = vectors[..., _ENDS] if vectors.shape[-1] >= len(_ENDS) else outermost
    return _Ritz(
        torch.cat([best, ends, last, stays], dim=-1),
        torch.cat([best, outermost], dim=-1),
        norm,
        values[..., -1:] - values[..., :1],
    )


def _relative(sizes: Tensor, ritz: _Ritz) -> Tensor:
    """The larger residual of the two ends, relative to the spectrum; (weights,)."""
    largest = sizes.amax(dim=-1, keepdim=True)
    # Where G is a multiple of I to rounding, the spectrum is a point and nothing is lost.
    epsilon, tiny = torch.finfo(sizes.dtype).eps, torch.finfo(sizes.dtype).tiny
    noise = 30 * epsilon * (1 + ritz.norm)
    scale = torch.minimum(ritz.norm, ritz.spread).clamp(min=tiny)
    return ((largest - noise).clamp(min=0) / scale).flatten(1).amax(dim=1)
