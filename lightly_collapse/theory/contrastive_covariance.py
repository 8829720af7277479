"""The matrix that drives a linear network trained contrastively.

Jing, Vincent, LeCun and Tian, "Understanding dimensional collapse in contrastive self-supervised
learning" (ICLR 2022), Lemma 2: gradient flow of a linear network z = W x is dW/dt = W X with
X = S0 - S1, the weighted covariance of the data less that of the augmentation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightly_collapse._checks import check_rows


@dataclass(frozen=True)
class ContrastiveCovariance:
    """What `contrastive_covariance` returns.

    Attributes:
        data: S0, shape (D, D): how the data spreads, weighted by what the loss pushes apart.
        augmentation: S1, shape (D, D): how the augmentation spreads, weighted by what it pulls.
    """

    data: Tensor
    augmentation: Tensor

    @property
    def matrix(self) -> Tensor:
        """X = S0 - S1, shape (D, D), symmetric."""
        return self.data - self.augmentation

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of X, shape (D,), descending."""
        return torch.linalg.eigvalsh(self.matrix).flip(0)

    def negative_directions(self) -> Tensor:
        """Unit eigenvectors of X with negative eigenvalue, one a row, the most negative first.

        They are the directions that the linear network loses under gradient flow (section 4.2).
        """
        eigenvalues, vectors = torch.linalg.eigh(self.matrix)
        return vectors.T[eigenvalues < 0]


def contrastive_covariance(
    x0: Tensor, x1: Tensor, temperature: float | None = None, weight: Tensor | None = None
) -> ContrastiveCovariance:
    r"""The contrastive covariance X = S0 - S1 of anchors and their augmented versions.

    .. code-block:: text

        S0 = 1/N sum_ij a_ij (x_i - x_j)(x_i - x_j)^T
        S1 = 1/N sum_i (1 - a_ii)(x'_i - x_i)(x'_i - x_i)^T

    with x_i the anchors and x'_i their augmented versions. The paper writes the sums without 1/N;
    with it X belongs to the loss averaged over anchors and does not grow with N. `-W X` is then
    exactly the gradient in W of

    .. code-block:: text

        1/N sum_i -temperature log( e(z_i, z'_i) / (e(z_i, z'_i) + sum_{j != i} e(z_i, z_j)) ),
        e(u, v) = exp(-|u - v|^2 / (2 temperature)),  z = W x,

    whose softmax weights are a_ij (a_ii belongs to the pair x_i, x'_i).

    Which form is meant matters. **Uniform weights** (a_ij = 1/N, the embedding still near zero):
    with clean anchors X is about 2 cov(data) - cov(augmentation), negative where the augmentation
    has more than twice the variance of the data. With both views augmented, X is about
    2 (1 - 1/N) cov(clean data) whatever the augmentation, so it says nothing about collapse.
    **Softmax weights** follow training: give the current `weight`; X then turns negative along
    strongly augmented directions with both views augmented too.

    Args:
        x0: anchors, shape (N, D), N >= 2.
        x1: their augmented versions, shape (N, D), row by row.
        temperature: temperature of the softmax weights; None for uniform weights.
        weight: W, shape (d, D), where the softmax weights are taken; the identity by default.
            Has no meaning, and is refused, without a temperature.

    Returns:
        The two parts, their difference and its spectrum.

    Raises:
        ValueError: if the shapes do not agree, an entry is not finite, or `temperature` is not
            positive.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
        >>> noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
        >>> strength = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
        >>> x = contrastive_covariance(clean, clean + strength * noise)
        >>> [round(value) for value in x.eigenvalues.tolist()]  # 2 - strength^2
        [2, 1, -2]
        >>> x.negative_directions().abs().round().tolist()
        [[0.0, 0.0, 1.0]]
    """
    x0 = check_rows(x0, "x0", minimum=2)
    x1 = check_rows(x1, "x1", minimum=2)
    if x0.shape != x1.shape:
        raise ValueError(
            f"x1 must pair with x0 row by row, got shapes {tuple(x0.shape)} and {tuple(x1.shape)}"
        )
    n = len(x0)
    if temperature is None:
        if weight is not None:
            raise ValueError("weight is used by the softmax weights only: give a temperature too")
        centered = x0 - x0.mean(0)
        step = x1 - x0
        return ContrastiveCovariance(
            data=2 * centered.T @ centered / n,
            augmentation=(1 - 1 / n) * step.T @ step / n,
        )
    attention = _softmax_weights(x0, x1, temperature, weight)
    pull = 1 - attention.diagonal()
    push = attention - attention.diagonal().diag()
    # sum_ij a_ij (x_i - x_j)(x_i - x_j)^T without the N^2 differences; centring cancels less.
    x = x0 - x0.mean(0)
    cross = x.T @ push @ x
    degree = push.sum(0) + push.sum(1)
    step = x1 - x0
    return ContrastiveCovariance(
        data=(x.T @ (degree[:, None] * x) - cross - cross.T) / n,
        augmentation=step.T @ (pull[:, None] * step) / n,
    )


def _softmax_weights(x0: Tensor, x1: Tensor, temperature: float, weight: Tensor | None) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z0, z1 = x0, x1
    if weight is not None:
        if weight.ndim != 2 or weight.shape[1] != x0.shape[1]:
            raise ValueError(
                f"weight must have shape (d, {x0.shape[1]}), got {tuple(weight.shape)}"
            )
        z0, z1 = x0 @ weight.T.to(x0), x1 @ weight.T.to(x0)
    squared = torch.cdist(z0, z0).square()
    squared = squared.diagonal_scatter((z1 - z0).square().sum(1))
    return torch.softmax(-squared / (2 * temperature), dim=1)
