"""TiCo."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import TiCoLoss
from lightly.models.modules.heads import TiCoProjectionHead
from torch import Tensor, zeros
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.momentum import MomentumMethod


class TiCo(MomentumMethod):
    """TiCo: invariance to the momentum encoder, and a contrast with the embeddings' covariance.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        decay: beta of the covariance's moving average.
        covariance: rho, the weight of the covariance term.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        kwargs: see `Method`.

    Source: Zhu et al., arXiv 2206.10698.
    """

    def __init__(
        self,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        decay: float = 0.9,
        covariance: float = 8.0,
        start_momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(start_momentum=start_momentum, **kwargs)
        self.head = TiCoProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.add_momentum_encoder()
        self.criterion = TiCoLoss(decay, covariance, gather_distributed=True)
        # Lightly keeps the moving average outside of the state; a resumed run needs it.
        del self.criterion.C
        self.criterion.register_buffer("C", zeros(output_dim, output_dim))

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The TiCo loss of the first view's embedding and the second's momentum embedding."""
        self.update_momentum_encoder()
        r0 = self.encode(views[0])
        key, embedding = self.momentum_embed(views[1])
        return Step(self.criterion(self.embed(r0), embedding), (r0,), key)

    @override
    def _ldreg_rows(self, batch_size: int) -> int:
        return 2 * batch_size
