"""W-MSE."""

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import WMSELoss
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class WMSE(Method):
    """W-MSE: the distance of two views' embeddings after whitening them.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        whitening_size: images that are whitened together, at least twice `output_dim`; the batch
            must be a multiple of it.
        iterations: how many random divisions of the batch are averaged.
        kwargs: see `Method`.

    Source: Ermolov et al., ICML 2021, arXiv 2007.06346.
    """

    def __init__(
        self,
        hidden_dim: int = 1024,
        output_dim: int = 64,
        whitening_size: int = 128,
        iterations: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if whitening_size < 2 * output_dim:
            raise ValueError(
                f"whitening_size must be at least twice output_dim, {2 * output_dim}, "
                f"got {whitening_size}"
            )
        self.head = ProjectionHead(
            [
                (self.feature_dim, hidden_dim, nn.BatchNorm1d(hidden_dim), nn.ReLU()),
                (hidden_dim, output_dim, None, None),
            ]
        )
        self.whitening_size = whitening_size
        self.criterion = WMSELoss(output_dim, w_iter=iterations, w_size=whitening_size)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The mean squared distance of the whitened, normalized embeddings."""
        r0, r1 = (self.encode(view) for view in views)
        if len(r0) % self.whitening_size:
            raise ValueError(
                f"data.batch_size must be a multiple of whitening_size {self.whitening_size}, "
                f"got {len(r0)}"
            )
        embeddings = torch.cat([self.embed(r0), self.embed(r1)]).float()
        return Step(self.criterion(embeddings), (r0, r1))
