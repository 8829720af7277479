"""Intrinsic dimension metrics over a bounded uniform sample of the rows."""

from typing import Any

from torch import Tensor, tensor
from typing_extensions import override

from lightly_collapse import functional
from lightly_collapse._checks import check_rows
from lightly_collapse.functional.intrinsic_dimension import (
    DEFAULT_LID_K,
    Estimator,
    lid_mle_from_distances,
    lid_mom_from_distances,
)
from lightly_collapse.functional.two_nn import two_nn_of_distances
from lightly_collapse.metrics._mergeable import NanStrategy
from lightly_collapse.metrics._reservoir import ReservoirMetric

_ESTIMATORS = {"mom": lid_mom_from_distances, "mle": lid_mle_from_distances}


class LocalIntrinsicDimension(ReservoirMetric):
    """Geometric mean of the local intrinsic dimensionality (mLID) of a sample of the rows.

    The neighbours of a sampled row are sought in the sample: with fewer rows than the stream has,
    they are farther away and the measure is less local. Compare values of equal `rows_used`.

    Args:
        k: number of neighbours, at least 2.
        estimator: `mom` (method of moments) or `mle` (maximum likelihood).
        size: number of rows of the sample at most; `rows_used` says how many there are.
        seed: of the sample.
        reduction: `geometric_mean`, or `none` for the LID of every sampled row.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474.

    Examples:
        >>> import torch
        >>> metric = LocalIntrinsicDimension(k=64, size=2000)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(20):
        ...     metric.update(torch.rand(250, 2, generator=generator))
        >>> f"{metric.compute():.1f} from {metric.rows_used} of {metric.rows} rows"
        '1.9 from 2000 of 5000 rows'
    """

    def __init__(
        self,
        k: int = DEFAULT_LID_K,
        estimator: Estimator = "mom",
        size: int = 5000,
        seed: int = 0,
        reduction: str = "geometric_mean",
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(size, seed, nan_strategy, **kwargs)
        if estimator not in _ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}"
            )
        if reduction not in ("geometric_mean", "none"):
            raise ValueError(f"reduction must be geometric_mean or none, got {reduction!r}")
        if not 2 <= k < size:
            raise ValueError(f"k must be between 2 and size - 1, {size - 1}, got {k}")
        self.k = k
        self.estimator = estimator
        self.reduction = reduction

    @override
    def compute(self) -> Tensor:
        """The measure of the sample.

        Returns:
            A scalar, or (rows_used,) with `reduction="none"`; float32.

        Raises:
            ValueError: if the sample has no more than `k` rows.
        """
        lid = _ESTIMATORS[self.estimator](self.neighbor_distances(self.k))
        return self._output(lid if self.reduction == "none" else functional.geometric_mean(lid))


class TwoNN(ReservoirMetric):
    """TwoNN global intrinsic dimension (Facco et al. 2017) of a sample of the rows.

    See `lightly_collapse.functional.two_nn`.

    Args:
        discard_fraction: the share of the largest ratios left out of the fit.
        size: number of rows of the sample at most; `rows_used` says how many there are.
        seed: of the sample.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> import torch
        >>> metric = TwoNN()
        >>> f"{metric(torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))):.1f}"
        '2.0'
    """

    def __init__(
        self,
        discard_fraction: float = 0.1,
        size: int = 5000,
        seed: int = 0,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(size, seed, nan_strategy, **kwargs)
        self.discard_fraction = discard_fraction

    @override
    def compute(self) -> Tensor:
        """The intrinsic dimension of the sample.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: if the sample has fewer than three rows, or too few distinct ones.
        """
        check_rows(self._rows(), "x", minimum=3)
        distances = self.neighbor_distances(2)
        return self._output(two_nn_of_distances(distances, self.discard_fraction))


class DANCo(ReservoirMetric):
    """DANCo global intrinsic dimension (Ceruti et al. 2014) of a sample of the rows.

    See `lightly_collapse.functional.danco`, which needs scikit-dimension; slow for wide features.

    Args:
        k: number of neighbours.
        size: number of rows of the sample at most; `rows_used` says how many there are.
        seed: of the sample.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> import torch
        >>> metric = DANCo(size=500)
        >>> metric.update(torch.rand(1000, 2))
        >>> metric.rows_used
        500
    """

    def __init__(
        self,
        k: int = 10,
        size: int = 5000,
        seed: int = 0,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(size, seed, nan_strategy, **kwargs)
        self.k = k

    @override
    def compute(self) -> Tensor:
        """The intrinsic dimension of the sample.

        Returns:
            A scalar, float32.

        Raises:
            ImportError: if scikit-dimension is not installed.
            ValueError: if the sample has too few rows.
        """
        return self._output(tensor(functional.danco(self._rows(), self.k)))
