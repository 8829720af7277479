"""Comparison of local distance distributions: how their dimensions differ and spread.

Near a sample, the distance r to a neighbour within a small radius w follows F(r) = (r / w)^LID.
"""

import torch
from torch import Tensor

from lightly_collapse.functional.intrinsic_dimension import _check_lid as check_lid


def frechet_variance(lid: Tensor) -> Tensor:
    """Fréchet variance of local distance distributions under the Fisher-Rao metric.

    mean_i d(LID_i, mLID)^2 = mean_i (ln LID_i - mean_j ln LID_j)^2, with mLID the geometric mean:
    how unevenly the dimension is distributed over the samples.

    Args:
        lid: LID values of any shape.

    Returns:
        A scalar, 0 where all values are equal.

    Raises:
        ValueError: if `lid` is empty or holds a value that is not positive and finite.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, definition 4.

    Examples:
        >>> frechet_variance(torch.tensor([1.0, torch.e**2]))
        tensor(1.)
    """
    return torch.var(check_lid(lid, "lid").log(), correction=0)


def asymptotic_kl_divergence(lid0: Tensor, lid1: Tensor) -> Tensor:
    """Asymptotic Kullback-Leibler divergence of two local distance distributions.

    KL(F_0 || F_1) of the distributions F(r) = (r / w)^LID of the distance to a neighbour within a
    radius w, whatever w: LID_1 / LID_0 - ln(LID_1 / LID_0) - 1. Not symmetric; for near values it
    is half the square of `fisher_rao_distance`.

    Args:
        lid0: LID values.
        lid1: LID values of a shape that broadcasts with that of `lid0`.

    Returns:
        The divergences, not negative.

    Raises:
        ValueError: if either is empty or holds a value that is not positive and finite.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, lemma 2.

    Examples:
        >>> asymptotic_kl_divergence(torch.tensor(2.0), torch.tensor(1.0))  # 1/2 + ln 2 - 1
        tensor(0.1931)
    """
    log_ratio = check_lid(lid1, "lid1").log() - check_lid(lid0, "lid0").log()
    return log_ratio.expm1() - log_ratio
