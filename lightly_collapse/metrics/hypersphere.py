"""Alignment and uniformity metrics on the unit sphere."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse import functional
from lightly_collapse._checks import on_sphere
from lightly_collapse.functional.hypersphere import wasserstein_of_moments
from lightly_collapse.metrics._mergeable import MergeableMetric, NanStrategy
from lightly_collapse.metrics._reservoir import ReservoirMetric
from lightly_collapse.metrics._scatter import ScatterMetric


class Alignment(MergeableMetric):
    """Alignment (Wang and Isola 2020): see `lightly_collapse.functional.alignment`.

    Args:
        nan_strategy: `error`, or `drop` pairs that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = Alignment()
        >>> metric(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor(2.)
    """

    higher_is_better = False

    total: Tensor

    def __init__(self, nan_strategy: NanStrategy = "error", **kwargs: Any) -> None:
        super().__init__(nan_strategy, **kwargs)
        self._add("total", torch.tensor(0.0, dtype=torch.float64))

    @override
    def update(self, z0: Tensor, z1: Tensor) -> None:
        """Take in two views of a batch.

        Args:
            z0: (n, D) embeddings of one view.
            z1: (n, D) embeddings of the other.

        Raises:
            ValueError: if they are not 2-D, are empty, differ in shape, hold a zero row, or hold
                NaN or inf and `nan_strategy` is `error`.
        """
        if z0.shape != z1.shape or z0.ndim != 2:
            raise ValueError(
                "z0 and z1 must be 2-D and of one shape, got "
                f"{tuple(z0.shape)} and {tuple(z1.shape)}"
            )
        pairs = self._finite_rows(torch.cat([z0, z1], dim=1), "z0 and z1").double()
        if pairs.shape[0]:
            self.total = self.total + functional.alignment(*pairs.chunk(2, dim=1)) * pairs.shape[0]
            self.rows = self.rows + pairs.shape[0]

    @override
    def compute(self) -> Tensor:
        """The mean over all pairs so far.

        Returns:
            A scalar between 0 and 4, float32.

        Raises:
            ValueError: if there was no pair yet.
        """
        self._check_updated()
        return self._output(self.total / self.rows)

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return super()._merge(states) | {"total": torch.stack([s["total"] for s in states]).sum()}


class Uniformity(ReservoirMetric):
    """Uniformity (Wang and Isola 2020) over all pairs of a sample of the rows.

    See `lightly_collapse.functional.uniformity`.

    Args:
        t: inverse temperature.
        size: number of rows of the sample at most; `rows_used` says how many there are.
        seed: of the sample.
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = Uniformity()
        >>> metric(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(-8.)
    """

    higher_is_better = False

    def __init__(
        self,
        t: float = 2.0,
        size: int = 5000,
        seed: int = 0,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(size, seed, nan_strategy, **kwargs)
        if not t > 0:
            raise ValueError(f"t must be positive, got {t}")
        self.t = t

    @override
    def compute(self) -> Tensor:
        """The uniformity of the sample.

        Returns:
            A scalar between -4 t and 0, float32.

        Raises:
            ValueError: if the sample has fewer than two rows or holds a zero row.
        """
        return self._output(functional.uniformity(self._rows(), self.t))


class WassersteinUniformity(ScatterMetric):
    """Wasserstein uniformity (Fang et al. 2024) of all rows.

    See `lightly_collapse.functional.wasserstein_uniformity`. Its sketch is that of the normalised
    rows, so a `MetricCollection` keeps it apart from the spectrum metrics.

    Args:
        nan_strategy: `error`, or `drop` rows that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = WassersteinUniformity()
        >>> f"{metric(torch.tensor([[1.0, 0.0], [0.0, 1.0]])):.3f}"
        '1.000'
    """

    higher_is_better = False

    def __init__(self, nan_strategy: NanStrategy = "error", **kwargs: Any) -> None:
        super().__init__(nan_strategy, settings=(1,), **kwargs)

    @override
    def update(self, z: Tensor) -> None:
        """Take in a batch.

        Args:
            z: (n, D) rows in any floating dtype.

        Raises:
            ValueError: if `z` is not 2-D, is empty, is not as wide as the batches before, holds a
                zero row, or holds NaN or inf and `nan_strategy` is `error`.
        """
        self._check_width(z)
        z = self._finite_rows(z)
        if z.shape[0]:
            self._take_in(on_sphere(z.double(), "z"))

    @override
    def compute(self) -> Tensor:
        """The distance of all rows so far from a uniform sphere.

        Returns:
            A scalar between 0 and sqrt(2), float32.

        Raises:
            ValueError: if there was no row yet.
        """
        s = self._singular_values(center=True) / self.rows.double().sqrt()
        return self._output(wasserstein_of_moments(self.mean, s))
