"""VICReg."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class VICReg(Method):
    """VICReg: invariance, variance and covariance of two views' embeddings.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        invariance: weight of the views' mean squared difference.
        variance: weight of the hinge on the standard deviations.
        covariance: weight of the squared covariances.
        kwargs: see `Method`.

    Source: Bardes, Ponce and LeCun, ICLR 2022, arXiv 2105.04906.
    """

    def __init__(
        self,
        hidden_dim: int = 8192,
        output_dim: int = 8192,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = VICRegProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.criterion = VICRegLoss(invariance, variance, covariance, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The VICReg loss of the two views' embeddings."""
        r0, r1 = (self.encode(view) for view in views)
        return Step(self.criterion(self.embed(r0), self.embed(r1)), (r0, r1))
