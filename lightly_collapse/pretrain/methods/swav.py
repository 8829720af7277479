"""SwAV."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class SwAV(Method):
    """SwAV: each view predicts the other's assignment to prototypes.

    Small views are drawn where `data.views.local_crops` asks for them.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        prototypes: how many there are.
        temperature: of the prediction.
        kwargs: see `Method`.

    Source: Caron et al., NeurIPS 2020, arXiv 2006.09882.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        output_dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = SwaVProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.prototypes = SwaVPrototypes(output_dim, prototypes)
        self.criterion = SwaVLoss(temperature, sinkhorn_gather_distributed=True)

    @override
    def trainable_modules(self) -> list[nn.Module]:
        """Backbone, projector and prototypes."""
        return [*super().trainable_modules(), self.prototypes]

    @override
    def embed(self, features: Tensor) -> Tensor:
        """The unit vectors that are compared with the prototypes."""
        return normalize(self.head(features))

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The swapped prediction loss of all views."""
        self.prototypes.normalize()
        features = [self.encode(view) for view in views]
        scores = [self.prototypes(self.embed(r)) for r in features]
        loss = self.criterion(scores[:2], scores[2:]).reshape(())
        return Step(loss, (features[0], features[1]))
