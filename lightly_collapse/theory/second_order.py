"""B of further losses: what a linear model feels of them near the origin.

Near the origin a loss of z = W x is const - Tr[W B W^T] + O(W^4): directions with an eigenvalue of
B above zero grow away from it, the others stay collapsed. `QuarticLandscape.from_covariances` has B
of InfoNCE and of the spectral contrastive loss; here are those of Barlow Twins, VICReg and BYOL.
A0 is the covariance of the clean data, C that of the augmentation, S = A0 + C.
"""

import math

import torch
from torch import Tensor

from lightly_collapse.theory._check import check_covariance, check_symmetric
from lightly_collapse.theory.landscape import QuarticLandscape


def barlow_twins_landscape(
    data: Tensor, augmentation: Tensor, weight_decay: float = 0.0
) -> QuarticLandscape:
    """The landscape of Barlow Twins without its standardisation and with lambda = 1.

    The cross-covariance of the two views is W A0 W^T, so that the loss |I - W A0 W^T|^2 is

        d - Tr[W (2 A0) W^T] + Tr[W A0 W^T W A0 W^T]:

    B = 2 A0 - g I, and A0 in the place of S. Every direction with signal is whitened, however
    strong its augmentation, which the loss does not see; weight decay kills those with 2 a <= g.

    Args:
        data: A0, shape (D, D).
        augmentation: C, shape (D, D), without effect; it is checked like that of other losses.
        weight_decay: g in the term g |W|^2 added to the loss.

    Returns:
        The landscape.

    Raises:
        ValueError: as `QuarticLandscape`, or if `weight_decay` is negative.

    Source: Zbontar et al., ICML 2021, arXiv 2103.03230; the reduction is that of Ziyin et al., ICLR
    2023, arXiv 2210.00638.

    Examples:
        >>> landscape = barlow_twins_landscape(torch.diag(torch.tensor([1.0, 0.1])), torch.eye(2))
        >>> landscape.eigenvalues(width=2)
        tensor([1., 1.], dtype=torch.float64)
    """
    data, _ = _checked(data, augmentation)
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    return QuarticLandscape(2 * data - weight_decay * torch.eye(len(data)).double(), data)


def vicreg_matrix(
    data: Tensor,
    augmentation: Tensor,
    width: int,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    eps: float = 1e-4,
) -> Tensor:
    """B of VICReg: (variance S / (2 sqrt(eps)) - 2 invariance C) / d.

    The hinge 1 - sqrt(v + eps) falls by v / (2 sqrt(eps)) near v = 0, a pull of 50 a unit of
    variance at the usual eps, and the invariance term costs 2 C; the covariance term is of fourth
    order. So only augmentation 24 times as strong as the signal keeps a direction at the origin:
    the hinge is what prevents complete collapse.

    Args:
        data: A0, shape (D, D).
        augmentation: C, shape (D, D).
        width: d, of the embedding, over which the terms are averaged.
        invariance: lambda.
        variance: mu.
        eps: epsilon inside the root.

    Returns:
        B, shape (D, D), float64, of the loss const - Tr[W B W^T] + O(W^4).

    Raises:
        ValueError: if a matrix is no covariance, or `width` or `eps` is not positive.

    Source: Bardes et al., ICLR 2022, arXiv 2105.04906, equations 1 to 6; Lightly's VICRegLoss.

    Examples:
        >>> B = vicreg_matrix(torch.eye(2), torch.diag(torch.tensor([0.0, 100.0])), width=2)
        >>> [value > 0 for value in B.diagonal().tolist()]
        [True, True]
    """
    data, augmentation = _checked(data, augmentation)
    if width < 1 or not 0 < eps < math.inf:
        raise ValueError(f"width and eps must be positive, got {width} and {eps}")
    pull = variance * (data + augmentation) / (2 * math.sqrt(eps))
    return (pull - 2 * invariance * augmentation) / width


def byol_matrix(data: Tensor, augmentation: Tensor, predictor: float) -> Tensor:
    """B of BYOL without normalisation, its predictor p times the identity: 2 p (A0 - p S).

    The stopped gradient makes it no gradient of any loss, but W moves by dW/dt = 2 W B all the
    same, the momentum encoder taken as W itself. A direction of clean variance a and augmentation
    variance c grows where p < a / (a + c): without a predictor, p = 1, everything with any
    augmentation collapses, and a small eigenvalue of the predictor protects weak signal.

    Args:
        data: A0, shape (D, D).
        augmentation: C, shape (D, D).
        predictor: p, positive.

    Returns:
        B, shape (D, D), float64.

    Raises:
        ValueError: if a matrix is no covariance or `predictor` is not positive.

    Source: Tian, Chen and Ganguli, ICML 2021, arXiv 2102.06810, lemma 1, for the published sum of
    both directions (Grill et al., arXiv 2006.07733).

    Examples:
        >>> clean, noise = torch.eye(2), torch.diag(torch.tensor([0.1, 3.0]))
        >>> [b > 0 for b in byol_matrix(clean, noise, predictor=0.5).diagonal().tolist()]
        [True, False]
    """
    data, augmentation = _checked(data, augmentation)
    if not 0 < predictor < math.inf:
        raise ValueError(f"predictor must be positive, got {predictor}")
    return 2 * predictor * (data - predictor * (data + augmentation))


def _checked(data: Tensor, augmentation: Tensor) -> tuple[Tensor, Tensor]:
    data = check_symmetric(data, "data")
    augmentation = check_covariance(augmentation, "augmentation")
    if data.shape != augmentation.shape:
        raise ValueError(
            f"data and augmentation must have the same shape, got {tuple(data.shape)} and "
            f"{tuple(augmentation.shape)}"
        )
    return data, augmentation
