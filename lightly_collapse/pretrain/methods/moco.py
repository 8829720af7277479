"""MoCo v2."""

import copy
from collections.abc import Sequence
from typing import Any

from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, no_grad

from lightly_collapse.pretrain.methods.base import Method, Step


class MoCo(Method):
    """MoCo v2: queries against keys of a momentum encoder and a queue of earlier keys.

    Args:
        hidden_dim: of the projector; None for the width of the representation.
        output_dim: of the projector.
        temperature: of the contrastive loss.
        queue_size: how many earlier keys are negatives.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        width = self.feature_dim
        self.head = MoCoProjectionHead(width, hidden_dim or width, output_dim)
        self.momentum_backbone = copy.deepcopy(self.backbone)
        self.momentum_head = copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)
        self.criterion = NTXentLoss(
            temperature, memory_bank_size=(queue_size, output_dim), gather_distributed=True
        )
        self.start_momentum = start_momentum

    def step(self, views: Sequence[Tensor]) -> Step:
        """The contrastive loss of queries and keys."""
        momentum = self.momentum(self.start_momentum)
        update_momentum(self.backbone, self.momentum_backbone, m=momentum)
        update_momentum(self.head, self.momentum_head, m=momentum)
        query = self.encode(views[0])
        with no_grad():
            key = self.encode(views[1], self.momentum_backbone)
            key_embedding = self.momentum_head(key)
        return Step(self.criterion(self.embed(query), key_embedding), (query,), key)

    def _ldreg_rows(self, batch_size: int) -> int:
        return 2 * batch_size
