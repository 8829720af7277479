"""SimSiam."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class SimSiam(Method):
    """SimSiam: a predictor is trained to give the other view's projection, which gets no gradient.

    Args:
        hidden_dim: of the projector.
        prediction_dim: of the predictor's hidden layer.
        output_dim: of projector and predictor.
        kwargs: see `Method`.

    Source: Chen and He, CVPR 2021, arXiv 2011.10566.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        prediction_dim: int = 512,
        output_dim: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head = SimSiamProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.predictor = SimSiamPredictionHead(output_dim, prediction_dim, output_dim)
        self.criterion = NegativeCosineSimilarity()

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """Negative cosine similarity, of each prediction and the other view's projection."""
        r0, r1 = (self.encode(view) for view in views)
        z0, z1 = (self.embed(r) for r in (r0, r1))
        p0, p1 = (self.predictor(z) for z in (z0, z1))
        loss = (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2
        return Step(loss, (r0, r1))
