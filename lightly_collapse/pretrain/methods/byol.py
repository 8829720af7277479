"""BYOL."""

import copy
from collections.abc import Sequence
from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, cat, nn, no_grad

from lightly_collapse.pretrain.methods.base import Method, Step


class BYOL(Method):
    """BYOL: a predictor foretells the momentum encoder's projection of the other view.

    LDReg also takes the momentum encoder's representations as points to find neighbours among.

    Args:
        hidden_dim: of projector and predictor.
        output_dim: of projector and predictor.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        kwargs: see `Method`.

    Source: Grill et al., NeurIPS 2020, arXiv 2006.07733.
    """

    def __init__(
        self,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        start_momentum: float = 0.996,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = BYOLProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.predictor = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.momentum_backbone = copy.deepcopy(self.backbone)
        self.momentum_head = copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)
        self.criterion = NegativeCosineSimilarity()
        self.start_momentum = start_momentum

    def trainable_modules(self) -> list[nn.Module]:
        """Backbone, projector and predictor."""
        return [*super().trainable_modules(), self.predictor]

    def step(self, views: Sequence[Tensor]) -> Step:
        """Negative cosine similarity, each view foretelling the other."""
        momentum = self.momentum(self.start_momentum)
        update_momentum(self.backbone, self.momentum_backbone, m=momentum)
        update_momentum(self.head, self.momentum_head, m=momentum)
        r0, r1 = (self.encode(view) for view in views)
        p0, p1 = (self.predictor(self.embed(r)) for r in (r0, r1))
        with no_grad():
            t0, t1 = (self.encode(view, self.momentum_backbone) for view in views)
            z0, z1 = (self.momentum_head(t) for t in (t0, t1))
        loss = (self.criterion(p0, z1) + self.criterion(p1, z0)) / 2
        return Step(loss, (r0, r1), cat([t0, t1]))

    def _ldreg_rows(self, batch_size: int) -> int:
        return 4 * batch_size
