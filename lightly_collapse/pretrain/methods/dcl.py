"""Decoupled contrastive learning."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import DCLLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class DCL(Method):
    """DCL: SimCLR with the positive pair left out of the denominator.

    Args:
        hidden_dim: of the projector; None for the width of the representation.
        output_dim: of the projector.
        temperature: of the loss.
        kwargs: see `Method`.

    Source: Yeh et al., ECCV 2022, arXiv 2110.06848.
    """

    def __init__(
        self,
        hidden_dim: int | None = None,
        output_dim: int = 128,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = SimCLRProjectionHead(
            self.feature_dim, hidden_dim or self.feature_dim, output_dim
        )
        self.criterion = DCLLoss(temperature, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The decoupled contrastive loss of the two views' embeddings."""
        r0, r1 = (self.encode(view) for view in views)
        return Step(self.criterion(self.embed(r0), self.embed(r1)), (r0, r1))
