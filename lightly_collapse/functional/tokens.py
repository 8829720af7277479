"""Dense measures: how different the patch tokens of an image are, and how they drift.

A class token may keep its rank while the patches of an image become copies of one another or of a
few outliers. All functions take the patch tokens alone: class and register tokens are left out.
"""

import torch
from torch import Tensor

from lightly_collapse._checks import as_double, as_float, check_finite, unit_rows
from lightly_collapse.functional.spectrum import effective_rank


def patch_rank(tokens: Tensor, center: bool = True) -> Tensor:
    """Effective rank of the patch tokens of each image.

    The effective rank (Roy and Vetterli 2007) of the (p, d) matrix of an image's tokens, between 1
    and min(p, d). The rank over all images is that of all tokens as rows:
    `effective_rank(singular_values(tokens.flatten(0, 1), center=True))`.

    Args:
        tokens: (n, p, d) patch tokens of n images.
        center: subtract the mean token of the image first; of equal tokens nothing is left, and
            the rank is 1.

    Returns:
        (n,) ranks, float32 or the tokens' float64.

    Raises:
        ValueError: if `tokens` is not 3-D, is empty, has fewer than two tokens an image, or holds
            NaN or inf.

    Examples:
        >>> patch_rank(torch.eye(4)[None], center=False)
        tensor([4.])
    """
    x = _check_tokens(tokens, "tokens")
    matrices = as_double(x)
    if center:
        matrices = matrices - matrices.mean(dim=1, keepdim=True)
    # What is left of equal tokens is rounding: 1e-12 of their own size in float64.
    scale = as_double(x).norm(dim=(1, 2))
    values = _singular_values(matrices)
    ranks = [
        effective_rank(s) if s.norm() > 1e-6 * size else s.new_ones(())
        for s, size in zip(values, scale, strict=True)
    ]
    return torch.stack(ranks).to(x.dtype)


def _singular_values(matrices: Tensor) -> Tensor:
    """Of a batch; without a gradient from the smaller Gram matrix, which is four times faster.

    What is below 1e-8 of the largest cannot be told from zero there, and is.
    """
    if matrices.requires_grad or matrices.dtype != torch.float64:
        return torch.linalg.svdvals(matrices)
    small = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(1, 2)
    squares = torch.linalg.eigvalsh(small @ small.transpose(1, 2))
    rounding = small.shape[1] * torch.finfo(squares.dtype).eps * squares[:, -1:]
    return squares.where(squares > rounding, 0).sqrt()


def mean_token_cosine(tokens: Tensor) -> Tensor:
    """Mean cosine similarity of the pairs of different patch tokens of each image.

    1 where all tokens of an image point the same way. With unit tokens u_i it is
    (|sum_i u_i|^2 - p) / (p (p - 1)), without a matrix of pairs.

    Args:
        tokens: (n, p, d) patch tokens of n images.

    Returns:
        (n,) cosines, float32 or the tokens' float64; a zero token has cosine 0 with all others.

    Raises:
        ValueError: as `patch_rank`.

    Examples:
        >>> mean_token_cosine(torch.ones(1, 5, 3))
        tensor([1.])
    """
    x = _check_tokens(tokens, "tokens")
    unit = unit_rows(as_double(x))
    p = x.shape[1]
    lengths = unit.square().sum(dim=(1, 2))
    return ((unit.sum(dim=1).square().sum(dim=1) - lengths) / (p * (p - 1))).to(x.dtype)


def gram_drift(tokens: Tensor, reference: Tensor) -> Tensor:
    """How far the similarities between the patches of each image have moved from a reference.

    The mean square of the entries of U U^T - V V^T, where U and V are the unit patch tokens of the
    same image in the model and in a reference checkpoint. Up to the factor 1/p^2 the loss of
    DINOv3's Gram anchoring. The widths may differ.

    Args:
        tokens: (n, p, d) patch tokens of n images.
        reference: (n, p, e) patch tokens of the same images and positions.

    Returns:
        (n,) drifts, between 0 and 4, float32 or the tokens' float64.

    Raises:
        ValueError: as `patch_rank`, or if the numbers of images or tokens differ.

    Source: Siméoni et al., "DINOv3", 2025, arXiv 2508.10104, equation 2.

    Examples:
        >>> x = torch.randn(2, 9, 4)
        >>> gram_drift(x, 3 * x).max() < 1e-10
        tensor(True)
    """
    x, y = _check_tokens(tokens, "tokens"), _check_tokens(reference, "reference")
    if x.shape[:2] != y.shape[:2]:
        raise ValueError(
            "reference must have the images and tokens of tokens, got "
            f"{tuple(y.shape[:2])} and {tuple(x.shape[:2])}"
        )
    u, v = unit_rows(as_double(x)), unit_rows(as_double(y))
    difference = u @ u.transpose(1, 2) - v @ v.transpose(1, 2)
    return difference.square().mean(dim=(1, 2)).to(x.dtype)


def norm_outliers(tokens: Tensor, factor: float = 3.0) -> Tensor:
    """Share of the patch tokens of each image that are much longer than the others.

    Without register tokens, large transformers turn patches of little content into tokens of high
    norm that hold global information. A token counts where its norm is above `factor` times the
    median of its image.

    Args:
        tokens: (n, p, d) patch tokens of n images.
        factor: of the median norm.

    Returns:
        (n,) shares, float32 or the tokens' float64.

    Raises:
        ValueError: as `patch_rank`, or if `factor` is not above 1.

    Source: Darcet et al., "Vision Transformers Need Registers", ICLR 2024, arXiv 2309.16588, who
    take a fixed threshold for each model.

    Examples:
        >>> x = torch.ones(1, 10, 4)
        >>> x[0, 3] *= 5
        >>> norm_outliers(x)
        tensor([0.1000])
    """
    if not factor > 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    x = _check_tokens(tokens, "tokens")
    norms = x.norm(dim=2)
    outliers = norms > factor * norms.median(dim=1, keepdim=True).values
    return outliers.to(x.dtype).mean(dim=1)


def _check_tokens(x: Tensor, name: str) -> Tensor:
    if x.ndim != 3:
        raise ValueError(
            f"{name} must be 3-D (images, tokens, dimensions), got shape {tuple(x.shape)}"
        )
    if x.shape[0] < 1 or x.shape[1] < 2 or x.shape[2] < 1:
        raise ValueError(
            f"{name} must have an image, two tokens and a dimension at least, "
            f"got shape {tuple(x.shape)}"
        )
    check_finite(x, name)
    return as_float(x)
