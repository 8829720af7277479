"""BYOL."""

from collections.abc import Sequence
from typing import Any

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, cat
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.momentum import MomentumMethod


class BYOL(MomentumMethod):
    """BYOL: a predictor is trained to give the momentum encoder's projection of the other view.

    The loss is the sum over both directions of 2 - 2 cos(prediction, projection), averaged over
    the batch: equations 2 and 3 of the paper. LDReg, as in its official code, finds neighbours
    among the momentum encoder's representations too, and sums the means of the two views.

    Args:
        hidden_dim: of the projector's hidden layer.
        output_dim: of projector and predictor.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        prediction_dim: of the predictor's hidden layer; None for `hidden_dim`.
        kwargs: see `Method`.

    Source: Grill et al., NeurIPS 2020, arXiv 2006.07733.
    """

    ldreg_scale = 2.0

    def __init__(
        self,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        start_momentum: float = 0.996,
        prediction_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(start_momentum=start_momentum, **kwargs)
        self.head = BYOLProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.predictor = BYOLPredictionHead(output_dim, prediction_dim or hidden_dim, output_dim)
        self.add_momentum_encoder()
        self.criterion = NegativeCosineSimilarity()

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """2 - 2 cos of prediction and momentum projection, summed over both directions."""
        self.update_momentum_encoder()
        r0, r1 = (self.encode(view) for view in views)
        p0, p1 = (self.predictor(self.embed(r)) for r in (r0, r1))
        (t0, z0), (t1, z1) = (self.momentum_embed(view) for view in views)
        # The criterion is the mean of -cos.
        n0, n1 = self.targets(z0, z1)
        loss = 4 + 2 * (self.criterion(p0, n1) + self.criterion(p1, n0))
        return Step(loss, (r0, r1), cat([t0, t1]))

    def targets(self, z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
        """What the other view's predictions are compared with: the momentum projections.

        Args:
            z0: (n, output_dim) momentum projections of the first view.
            z1: of the second view.
        """
        return z0, z1

    @override
    def _ldreg_rows(self, batch_size: int) -> int:
        return 4 * batch_size
