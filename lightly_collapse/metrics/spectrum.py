"""Spectrum metrics: how many dimensions a stream of embeddings uses. One sketch serves them all."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse import functional
from lightly_collapse.functional.spectrum import DEFAULT_RTOL, rankme_of_spectrum
from lightly_collapse.metrics._mergeable import NanStrategy
from lightly_collapse.metrics._scatter import ScatterMetric


class _SpectrumMetric(ScatterMetric):
    """What the classes below share.

    All of them keep the count, mean and scatter of the rows: a state of D^2 numbers however many
    rows there are, the same for each class and each `center`, so that a `MetricCollection` of them
    updates it once. Rows may come in float16, bfloat16, float32 or float64; the state is float64
    and the value float32 (float64 after `set_dtype(torch.float64)`).
    """

    def __init__(self, center: bool, nan_strategy: NanStrategy, **kwargs: Any) -> None:
        super().__init__(nan_strategy, **kwargs)
        self.center = center

    @override
    def compute(self) -> Tensor:
        """The measure of all rows so far.

        Returns:
            The value: float32, a count int64.

        Raises:
            ValueError: if there was no row yet, or all were zero (all equal, where centred).
        """
        return self._output(self._measure(self._singular_values(self.center)))

    @abstractmethod
    def _measure(self, s: Tensor) -> Tensor:
        """The measure of a spectrum, before its dtype is settled."""


class Spectrum(_SpectrumMetric):
    """Singular values of all rows, in descending order.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = Spectrum()
        >>> for row in torch.diag(torch.tensor([3.0, 4.0])):
        ...     metric.update(row[None])
        >>> metric.compute()
        tensor([4., 3.])
    """

    def __init__(
        self, center: bool = False, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return s


class EffectiveRank(_SpectrumMetric):
    """Effective rank (Roy and Vetterli 2007): see `lightly_collapse.functional.effective_rank`.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = EffectiveRank()
        >>> f"{metric(torch.eye(5)):.3f}"
        '5.000'
    """

    higher_is_better = True

    def __init__(
        self, center: bool = False, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.effective_rank(s)


class RankMe(_SpectrumMetric):
    """RankMe (Garrido et al. 2023): see `lightly_collapse.functional.rankme`.

    Args:
        center: subtract the mean row first; the paper does not.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = RankMe()
        >>> metric.update(torch.eye(8)[:4])
        >>> metric.update(torch.eye(8)[4:])
        >>> f"{metric.compute():.3f}"
        '8.000'
    """

    higher_is_better = True

    def __init__(
        self, center: bool = False, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return rankme_of_spectrum(s)


class StableRank(_SpectrumMetric):
    """Stable rank: see `lightly_collapse.functional.stable_rank`.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = StableRank()
        >>> f"{metric(torch.diag(torch.tensor([2.0, 1.0, 1.0]))):.2f}"
        '1.50'
    """

    higher_is_better = True

    def __init__(
        self, center: bool = False, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.stable_rank(s)


class ParticipationRatio(_SpectrumMetric):
    """Participation ratio of the covariance: see `lightly_collapse.functional.participation_ratio`.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = ParticipationRatio()
        >>> square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> f"{metric(square):.2f}"
        '2.00'
    """

    higher_is_better = True

    def __init__(
        self, center: bool = True, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.participation_ratio(s)


class NESum(_SpectrumMetric):
    """Normalised eigenvalue sum of the covariance: see `lightly_collapse.functional.nesum`.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = NESum()
        >>> cross = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> f"{metric(cross):.2f}"
        '1.25'
    """

    higher_is_better = True

    def __init__(
        self, center: bool = True, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.nesum(s)


class ConditionNumber(_SpectrumMetric):
    """Condition number of the rows: see `lightly_collapse.functional.condition_number`.

    Infinite where the smallest singular value is below sqrt(D eps) of the largest (3e-7 at 512
    dimensions): the sketch cannot tell it from zero.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = ConditionNumber()
        >>> cross = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> f"{metric(cross):.2f}"
        '2.00'
    """

    higher_is_better = False

    def __init__(
        self, center: bool = True, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.condition_number(torch.where(self._is_positive(s), s, 0))


class CollapsedDimensions(_SpectrumMetric):
    """Dimensions that carry next to nothing: see `functional.collapsed_dimensions`.

    Of the min(rows, D) singular values: give it more rows than dimensions.

    Args:
        rtol: a dimension counts when its singular value is below this times the largest.
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = CollapsedDimensions()
        >>> line = torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, 4.0], [4.0, 0.0, 8.0]])
        >>> metric(line)
        tensor(2)
    """

    higher_is_better = False

    def __init__(
        self,
        rtol: float = DEFAULT_RTOL,
        center: bool = True,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)
        if not 0 <= rtol <= 1:
            raise ValueError(f"rtol must be between 0 and 1, got {rtol}")
        self.rtol = rtol

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.collapsed_dimensions(s, self.rtol)


class AlphaReQ(_SpectrumMetric):
    """alpha-ReQ: decay exponent of the covariance spectrum, see `functional.alpha_req`.

    Args:
        center: subtract the mean row first.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = AlphaReQ(center=False)
        >>> j = torch.arange(1, 101, dtype=torch.float64)
        >>> f"{metric(j.pow(-0.75).diag()):.3f}"
        '1.500'
    """

    # A slower decay uses more dimensions; the paper's best is near 1.
    higher_is_better = False

    def __init__(
        self, center: bool = True, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(center, nan_strategy, **kwargs)

    @override
    def _measure(self, s: Tensor) -> Tensor:
        return functional.alpha_req(s[self._is_positive(s)])
