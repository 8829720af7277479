"""NNCLR."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import NTXentLoss
from lightly.models.modules import (
    NNCLRPredictionHead,
    NNCLRProjectionHead,
    NNMemoryBankModule,
)
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class NNCLR(Method):
    """NNCLR: the positive of a view is the nearest neighbour of the other view in a queue.

    Args:
        hidden_dim: of the projector.
        output_dim: of projector and predictor.
        prediction_dim: of the predictor's hidden layer.
        temperature: of the contrastive loss.
        queue_size: how many earlier projections are kept.
        kwargs: see `Method`.

    Source: Dwibedi et al., ICCV 2021, arXiv 2104.14548.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        output_dim: int = 256,
        prediction_dim: int = 4096,
        temperature: float = 0.1,
        queue_size: int = 65536,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = NNCLRProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.predictor = NNCLRPredictionHead(output_dim, prediction_dim, output_dim)
        self.queue = NNMemoryBankModule(size=(queue_size, output_dim))
        self.criterion = NTXentLoss(temperature, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The mean of the contrastive losses of each prediction and the other view's neighbour."""
        r0, r1 = (self.encode(view) for view in views)
        z0, z1 = self.embed(r0), self.embed(r1)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        n0 = self.queue(z0.detach(), update=False)
        n1 = self.queue(z1.detach(), update=True)
        return Step((self.criterion(n0, p1) + self.criterion(n1, p0)) / 2, (r0, r1))
