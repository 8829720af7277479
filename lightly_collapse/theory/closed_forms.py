"""Gradient flow of linear networks in closed form: one layer, two aligned layers.

Jing, Vincent, LeCun and Tian, "Understanding dimensional collapse in contrastive self-supervised
learning" (ICLR 2022), sections 4 and 5.
"""

import torch
from torch import Tensor


def exponential_solution(weight: Tensor, growth: Tensor, time: Tensor) -> Tensor:
    """Singular values of W(t) = W(0) exp(X t), which solves dW/dt = W X with X constant.

    Args:
        weight: W(0), shape (..., d, D).
        growth: X, symmetric, shape (..., D, D).
        time: t >= 0, shape (T,).

    Returns:
        Shape (T, ..., min(d, D)), float64, descending; inf where the exponential overflows.

    Examples:
        >>> x = torch.tensor([[0.5, 0.0], [0.0, -1.0]])
        >>> values = exponential_solution(torch.eye(2), x, torch.tensor([0.0, 2.0]))
        >>> [[round(v, 3) for v in row] for row in values.tolist()]  # exp(0.5 t), exp(-t)
        [[1.0, 1.0], [2.718, 0.135]]
    """
    rates, vectors = torch.linalg.eigh(growth.double())
    shape = (-1, *[1] * rates.ndim)
    grown = (rates * time.double().reshape(shape)).exp()
    weights = (weight.double() @ vectors) * grown.unsqueeze(-2)
    finite = weights.isfinite().flatten(-2).all(-1)
    values: Tensor = torch.linalg.svdvals(weights.where(finite[..., None, None], 0))
    return values.where(finite[..., None], torch.inf)


def aligned_singular_values(
    first: Tensor, second: Tensor, growth: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Singular values of two aligned linear layers under gradient flow with X constant.

    Solves ds1/dt = s1 s2^2 g, ds2/dt = s2 s1^2 g with g = v^T X v (the theorem on aligned layers
    of section 5): s1^2 - s2^2 = c is conserved and ln(s1^2 / s2^2) falls by 2 g c t.

    Args:
        first: singular values of the first layer at time 0, positive.
        second: those of the second layer, same shape.
        growth: g, broadcastable to the same shape.
        time: t, broadcastable to the same shape.

    Returns:
        Singular values of both layers at time t, float64; inf from the moment on at which the
        solution diverges.

    Examples:
        >>> s = torch.tensor([1.0, 0.1], dtype=torch.float64)
        >>> s1, s2 = aligned_singular_values(s, s, torch.tensor(0.4), torch.tensor(1.0))
        >>> [round(value, 3) for value in s1.tolist()]  # s / sqrt(1 - 2 g s^2 t)
        [2.236, 0.1]
    """
    p, q = first.double().square(), second.double().square()
    exponent = 2 * growth.double() * time.double()
    c = p - q
    # q(t) = q c / (p exp(-2 g c t) - q); expm1 keeps the limit c -> 0 exact.
    shrink = torch.where(c == 0, -exponent, torch.expm1(-exponent * c) / c.where(c != 0, 1))
    denominator = 1 + p * shrink
    later = torch.where(denominator > 0, q / denominator, torch.inf)
    return (later + c).clamp(min=0).sqrt(), later.sqrt()


def saturating_singular_values(
    start: Tensor, growth: Tensor, ceiling: Tensor, time: Tensor
) -> Tensor:
    """Singular values of two aligned and equal linear layers whose growth ends.

    On the quartic landscape X falls as the embedding grows, so that with q = s^2 the singular
    value of the product, dq/dt = 2 g q^2 (1 - q^2 / ceiling^2), whose solution is

    .. code-block:: text

        F(q(t)) = F(q(0)) + 2 g t,   F(q) = -1/q + 1/(2 ceiling) ln |(ceiling + q)/(ceiling - q)|.

    A direction starts to grow about at t = 1 / (2 g q(0)): the small ones lag far behind.

    Args:
        start: s at time 0 of either layer, positive.
        growth: g > 0, v^T X v where the embedding is small; broadcastable.
        ceiling: the singular value of the product at which growth ends, positive; broadcastable.
        time: t >= 0, broadcastable.

    Returns:
        s at time t of either layer, float64.

    Examples:
        >>> start = torch.tensor([0.5, 0.1])
        >>> s = saturating_singular_values(
        ...     start, torch.tensor(1.0), torch.tensor(4.0), torch.tensor(20.0)
        ... )
        >>> [round(value, 3) for value in s.tolist()]
        [2.0, 0.129]
    """
    growth, ceiling, time = growth.double(), ceiling.double(), time.double()

    def clock(ratio: Tensor) -> Tensor:
        """F(q) x ceiling at q = ratio x ceiling."""
        return -1 / ratio + 0.5 * ((1 + ratio) / (1 - ratio)).abs().log()

    ratio = start.double().square() / ceiling
    target = clock(ratio) + 2 * growth * ceiling * time
    near = ratio.log() + torch.zeros_like(target)  # the log of q / ceiling lies between this
    far = torch.zeros_like(target)  # and this
    for _ in range(80):
        middle = (near + far) / 2
        reached = clock(middle.exp()) <= target
        near, far = middle.where(reached, near), far.where(reached, middle)
    return (near.exp() * ceiling).sqrt()
