"""MoCo v2."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.momentum import MomentumMethod


class MoCo(MomentumMethod):
    """MoCo v2: queries against keys of a momentum encoder and a queue of earlier keys.

    Args:
        hidden_dim: of the projector; None for the width of the representation.
        output_dim: of the projector.
        temperature: of the contrastive loss.
        queue_size: how many earlier keys are negatives.
        start_momentum: of the momentum encoder; 0.999 from first to last in the paper.
        end_momentum: which it reaches on a cosine.
        kwargs: see `Method`.

    Source: Chen et al., arXiv 2003.04297.
    """

    def __init__(
        self,
        hidden_dim: int | None = None,
        output_dim: int = 128,
        temperature: float = 0.2,
        queue_size: int = 4096,
        start_momentum: float = 0.99,
        end_momentum: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(start_momentum=start_momentum, end_momentum=end_momentum, **kwargs)
        width = self.feature_dim
        self.head = MoCoProjectionHead(width, hidden_dim or width, output_dim)
        self.add_momentum_encoder()
        self.criterion = NTXentLoss(
            temperature, memory_bank_size=(queue_size, output_dim), gather_distributed=True
        )

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The contrastive loss of queries and keys."""
        self.update_momentum_encoder()
        query = self.encode(views[0])
        key, key_embedding = self.momentum_embed(views[1])
        return Step(self.criterion(self.embed(query), key_embedding), (query,), key)

    @override
    def _ldreg_rows(self, batch_size: int) -> int:
        return 2 * batch_size
