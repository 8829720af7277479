"""LeJEPA."""

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import LeJEPALoss
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class LeJEPA(Method):
    """LeJEPA: views predict the mean of the global views, and SIGReg makes embeddings Gaussian.

    Small views are drawn where `data.views.local_crops` asks for them.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        sigreg: lambda, the weight of SIGReg in [0, 1]; the prediction has 1 - lambda.
        directions: random directions that SIGReg tests a step.
        kwargs: see `Method`.

    Source: Balestriero and LeCun, arXiv 2511.08544.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        output_dim: int = 64,
        sigreg: float = 0.05,
        directions: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = LeJEPAProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.criterion = LeJEPALoss(sigreg, gather_distributed=True, sigreg_num_vectors=directions)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """SIGReg and invariance of all views' embeddings."""
        features = [self.encode(view) for view in views]
        embeddings = torch.stack([self.embed(r) for r in features])
        # Lightly asks for small views. Without any, the global ones stand in for them: both terms
        # are means over views, which counting each view twice does not change.
        small = embeddings[2:] if len(views) > 2 else embeddings
        loss = self.criterion(local_proj=small, global_proj=embeddings[:2])
        return Step(loss, (features[0], features[1]))
