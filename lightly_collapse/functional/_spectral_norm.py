"""The spectral norm of G - I by matrix-vector products, tracked while the weight moves."""

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


# An operator of its own: how many steps it takes is no business of a compiler's graph.
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
    found = [
        _step(w, _random_basis(w) if new else basis)
        for w, basis, new in zip(rows, bases, first, strict=True)
    ]
    # One question to the device, not one a layer.
    residuals = torch.stack([residual.to(found[0][3]) for *_, residual in found])
    for i, residual in enumerate(residuals.tolist()):
        goal = _FOUND if first[i] or residual > _REPLACED else _LOST
        for _ in range(_ITERATIONS):
            if found[i][3] <= goal:
                break
            found[i] = _step(rows[i], found[i][2])
    u, y, basis, _ = zip(*found, strict=True)
    return list(u), list(y), list(basis)


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


def _step(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = torch.linalg.qr(basis).Q
    y = w.mT @ q
    columns = q.shape[-1]
    values, vectors = torch.linalg.eigh(y.mT @ y)
    values = values - 1
    highest = values[..., -1:].abs() > values[..., :1].abs()
    best = torch.where(highest[..., None], vectors[..., -1:], vectors[..., :1])
    norm = torch.where(highest, values[..., -1:], values[..., :1]).abs()
    spread = values[..., -1:] - values[..., :1]
    u, wu = q @ best, y @ best
    if columns == w.shape[-2]:
        return u, wu, q, norm.new_zeros(())  # the whole space: nothing is left to seek

    ends = [0, -1, *range(1, _PER_END), *range(-_PER_END, -1)]
    vectors, values = vectors[..., ends], values[..., None, [0, -1]]
    x = q @ vectors
    outermost = vectors[..., :2]
    # As rows: a product with two columns takes twice as long.
    residual = ((outermost.mT @ y.mT) @ w.mT).mT - x[..., :2] * (1 + values)
    direction = q[..., len(ends) :] @ outermost[..., len(ends) :, :]
    moves = torch.cat([residual, direction], dim=-1)
    sizes = torch.linalg.vector_norm(moves, dim=-2, keepdim=True)
    tiny = torch.finfo(w.dtype).tiny
    basis = torch.cat([x, moves / sizes.clamp(min=tiny)], dim=-1)
    largest = sizes[..., 0, :2].amax(dim=-1, keepdim=True)
    # Where G is a multiple of I to rounding, the spectrum is a point and nothing is lost.
    noise = 30 * torch.finfo(w.dtype).eps * (1 + norm)
    scale = torch.minimum(norm, spread).clamp(min=tiny)
    return u, wu, basis, ((largest - noise).clamp(min=0) / scale).amax()
