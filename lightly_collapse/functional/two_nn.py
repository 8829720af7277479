"""Global intrinsic dimension: of how many dimensions the whole set of samples looks like."""

from math import floor
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from lightly_collapse._checks import check_choice, check_rows
from lightly_collapse.functional.neighbors import nearest_neighbors

TwoNNConvention = Literal["fit", "mle"]
"""The line fitted to the distribution, or maximum likelihood from all ratios."""


def two_nn(x: Tensor, discard_fraction: float = 0.1, convention: TwoNNConvention = "fit") -> Tensor:
    """TwoNN: intrinsic dimension from the ratio of each sample's two nearest distances.

    With mu_i = r_2 / r_1 in ascending order and F_i = i / n, the slope of the line through the
    origin fitted to (ln mu_i, -ln(1 - F_i)) by least squares. The largest ratios are left out of
    the fit and counted in n; samples whose nearest neighbour is at the same place have no ratio
    and are left out altogether. This is the definition, and with the default the setting, of
    scikit-dimension's `TwoNN` and of DADApy's `compute_id_2NN`. Maximum likelihood takes
    (n - 1) / sum_i ln mu_i over all ratios, as DADApy's `algorithm="ml"`.

    Args:
        x: (n, d) samples; half types are computed in float32.
        discard_fraction: the share of the largest ratios left out, between 0 and 1, neither
            included; maximum likelihood leaves none out.
        convention: `fit`, or `mle` for maximum likelihood.

    Returns:
        A scalar.

    Raises:
        ValueError: if `x` is not 2-D, has fewer than three rows, holds NaN or inf, fewer than two
            ratios are left to fit, these are all one, or `discard_fraction` is outside (0, 1).

    Source: Facco et al., "Estimating the intrinsic dimension of datasets by a minimal neighborhood
    information", Scientific Reports 7, 12140, 2017.

    Examples:
        >>> plane = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> f"{two_nn(plane):.1f}"
        '2.0'
    """
    _check_fraction(discard_fraction)
    x = check_rows(x, "x", minimum=3)
    r, _ = nearest_neighbors(x, x, k=2, exclude=torch.arange(x.shape[0], device=x.device))
    return two_nn_of_distances(r, discard_fraction, convention)


def two_nn_of_distances(
    r: Tensor,
    discard_fraction: float = 0.1,
    convention: TwoNNConvention = "fit",
    corrected: bool = False,
) -> Tensor:
    """`two_nn` from the distances of samples to their two nearest neighbours.

    Args:
        r: (n, 2) distances in ascending order.
        discard_fraction: as for `two_nn`.
        convention: as for `two_nn`.
        corrected: fit to the expected logarithms of the ordered ratios, H_n - H_{n-i} over the
            dimension with H the harmonic numbers, instead of -ln(1 - i / n): the fit then has no
            bias of the order of 1 / n.

    Returns:
        A scalar.

    Raises:
        ValueError: as `two_nn`.

    Examples:
        >>> f"{two_nn_of_distances(torch.tensor([[1.0, 1.5], [1.0, 2.0], [1.0, 3.0]]), 0.3):.2f}"
        '1.44'
    """
    check_choice("convention", convention, get_args(TwoNNConvention))
    _check_fraction(discard_fraction)
    rows, dtype = r.shape[0], r.dtype
    r = r[r[:, 0] > 0].double() if r.device.type != "mps" else r[r[:, 0] > 0]
    n = r.shape[0]
    kept = floor(n * (1 - discard_fraction))
    if kept < 2:
        raise ValueError(
            "x must leave at least two samples with two distinct neighbours to fit, got "
            f"{kept} of {rows} rows ({rows - n} have a duplicate)"
        )
    log_mu = (r[:, 1] / r[:, 0]).sort().values.log()
    if convention == "mle" and log_mu.any():
        return ((n - 1) / log_mu.sum()).to(dtype)
    log_mu = log_mu[:kept]
    survival = 1 - torch.arange(1, kept + 1, device=r.device).to(log_mu) / n
    if not log_mu.any():
        raise ValueError("x must not have its two nearest distances equal at every sample")
    expected = -survival.log()
    if corrected:
        expected = (1 / torch.arange(n, n - kept, -1).to(log_mu)).cumsum(0)
    d = log_mu @ expected / log_mu.square().sum()
    return d.to(dtype)


def _check_fraction(discard_fraction: float) -> None:
    if not 0 < discard_fraction < 1:
        raise ValueError(
            f"discard_fraction must be between 0 and 1, neither included, got {discard_fraction}"
        )


def danco(x: Tensor, k: int = 10, random_state: int | None = 0) -> float:
    """DANCo: global intrinsic dimension from the norms and angles of nearest neighbours.

    Computed by scikit-dimension (the extra `intrinsic-dimension`), which compares the data with
    samples of spheres of every dimension up to the data's: minutes for wide features.

    Args:
        x: (n, d) samples.
        k: number of neighbours.
        random_state: seed of the samples it compares with.

    Returns:
        The intrinsic dimension.

    Raises:
        ImportError: if scikit-dimension is not installed.
        ValueError: if `x` is not 2-D, has too few rows for `k`, or holds NaN or inf.

    Source: Ceruti et al., "DANCo: an intrinsic dimensionality estimator exploiting angle and norm
    concentration", Pattern Recognition 47(8), 2014.

    Examples:
        >>> danco(torch.rand(100, 3), k=100)
        Traceback (most recent call last):
        ...
        ValueError: k must be between 2 and the number of other rows, 99, got 100
    """
    x = check_rows(x, "x", minimum=3)
    if not 2 <= k < x.shape[0]:
        raise ValueError(
            f"k must be between 2 and the number of other rows, {x.shape[0] - 1}, got {k}"
        )
    try:
        from skdim.id import DANCo  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "danco needs scikit-dimension: pip install 'lightly-collapse[intrinsic-dimension]'"
        ) from error
    estimator = DANCo(k=k, random_state=random_state)
    return cast(float, estimator.fit_transform(x.detach().cpu().double().numpy()))
