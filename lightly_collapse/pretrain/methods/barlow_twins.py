"""Barlow Twins."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class BarlowTwins(Method):
    """Barlow Twins: the cross-correlation of two views' embeddings, towards the identity.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        redundancy: weight of the entries off the diagonal.
        kwargs: see `Method`.

    Source: Zbontar et al., ICML 2021, arXiv 2103.03230.
    """

    def __init__(
        self,
        hidden_dim: int = 8192,
        output_dim: int = 8192,
        redundancy: float = 5e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = BarlowTwinsProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.criterion = BarlowTwinsLoss(redundancy, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The Barlow Twins loss of the two views' embeddings."""
        r0, r1 = (self.encode(view) for view in views)
        return Step(self.criterion(self.embed(r0), self.embed(r1)), (r0, r1))
