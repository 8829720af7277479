"""FroSSL."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import FroSSLLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class FroSSL(Method):
    """FroSSL: invariance, and the Frobenius norm of the covariance as its entropy.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        invariance: weight of the views' mean squared difference.
        kwargs: see `Method`.

    Source: Skean et al., ECCV 2024, arXiv 2310.02903.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        output_dim: int = 1024,
        invariance: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = VICRegProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.criterion = FroSSLLoss(invariance)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The FroSSL loss of all views' embeddings."""
        features = [self.encode(view) for view in views]
        loss = self.criterion([self.embed(r) for r in features])
        return Step(loss, tuple(features))
