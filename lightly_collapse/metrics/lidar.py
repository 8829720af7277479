"""LiDAR over a stream of augmented samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.functional.lidar import check_augmented, lidar_of_scatter
from lightly_collapse.metrics._mergeable import NanStrategy, exact_arithmetic
from lightly_collapse.metrics._scatter import ScatterMetric


class LiDAR(ScatterMetric):
    """LiDAR (Thilak et al. 2024): see `lightly_collapse.functional.lidar`.

    Keeps the scatter of the samples' means and the within-sample scatter: 2 D^2 numbers however
    many samples there are. A batch may have another number of augmentations than the others; every
    embedding weighs the same in S_w, every sample the same in S_b.

    Args:
        delta: added to the diagonal of S_w, above 0.
        nan_strategy: `error`, or `drop` samples that hold NaN or inf in any augmentation and count
            them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Attributes:
        embeddings: number of embeddings taken in; `rows` counts samples.
        within: (D, D) within-sample scatter, float64.

    Examples:
        >>> metric = LiDAR()
        >>> z = torch.eye(4).repeat_interleave(2, dim=0).view(4, 2, 4)
        >>> metric.update(z[:3])
        >>> metric.update(z[3:])
        >>> f"{metric.compute():.3f}"
        '3.000'
    """

    higher_is_better = True

    embeddings: Tensor
    within: Tensor

    def __init__(
        self, delta: float = 1e-4, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(nan_strategy, **kwargs)
        if not delta > 0:
            raise ValueError(f"delta must be positive, got {delta}")
        self.delta = delta
        self._add("embeddings", torch.tensor(0))
        self._add("within", torch.zeros(0, 0, dtype=torch.float64))

    @override
    def update(self, z: Tensor) -> None:
        """Take in a batch.

        Args:
            z: (n, q, D) embeddings, q augmentations of each of n samples.

        Raises:
            ValueError: if `z` is not 3-D, has no sample or fewer than two augmentations, is not as
                wide as the batches before, or holds NaN or inf and `nan_strategy` is `error`.
        """
        check_augmented(z, samples=1, finite=False)
        flat = z.flatten(1)
        self._check_width(z[:, 0])
        z = self._finite_rows(z, flat=flat)
        if not z.shape[0]:
            return
        with exact_arithmetic(z.device):
            e = z.double()
            means = e.mean(dim=1)
            deviations = (e - means[:, None]).flatten(0, 1)
            if not self.within.numel():
                self.within = e.new_zeros(e.shape[2], e.shape[2])
            self.within = self.within + deviations.mT @ deviations
            self.embeddings = self.embeddings + deviations.shape[0]
        self._take_in(means)

    @override
    def compute(self) -> Tensor:
        """LiDAR of all samples so far.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: if there were fewer than two samples, or their means are all equal.
        """
        self._check_updated()
        if self.rows < 2:
            raise ValueError(f"{type(self).__name__}.compute needs two samples or more, got 1")
        s_b = (self.scatter.triu() + self.scatter.triu(1).mT) / self.rows
        return self._output(lidar_of_scatter(s_b, self.within / self.embeddings, self.delta))

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        merged = super()._merge(states)
        filled = [s["within"] for s in states if s["within"].numel()]
        return merged | {
            "embeddings": torch.stack([s["embeddings"] for s in states]).sum(),
            "within": torch.stack(filled).sum(dim=0) if filled else self.within,
        }
