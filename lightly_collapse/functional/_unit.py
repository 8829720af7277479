"""Directions of vectors, at any scale."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean norm; a zero row stays zero and gets no gradient.

    In units of its largest entry no square of a row under- or overflows. `normalize` alone divides
    a row shorter than 1e-12 by 1e-12, and the gradient of a zero row as well.

    Args:
        x: (..., d) vectors, float32 or float64.

    Returns:
        (..., d) vectors of norm 1 or 0.

    Examples:
        >>> unit_rows(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    return normalize(x / torch.where(largest > 0, largest, torch.inf), dim=-1)
