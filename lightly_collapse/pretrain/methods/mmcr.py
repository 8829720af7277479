"""MMCR."""

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import MMCRLoss
from lightly.models.modules.heads import MMCRProjectionHead
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.momentum import MomentumMethod


class MMCR(MomentumMethod):
    """MMCR: the nuclear norm of the images' centroids over views, as large as can be.

    Args:
        hidden_dim: of the projector.
        output_dim: of the projector.
        compression: lambda, the weight of each image's own nuclear norm.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        kwargs: see `Method`.

    Source: Yerxa et al., NeurIPS 2023, arXiv 2303.03307.
    """

    def __init__(
        self,
        hidden_dim: int = 8192,
        output_dim: int = 512,
        compression: float = 5e-3,
        start_momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(start_momentum=start_momentum, **kwargs)
        self.head = MMCRProjectionHead(self.feature_dim, hidden_dim, output_dim)
        self.add_momentum_encoder()
        self.criterion = MMCRLoss(compression)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The MMCR loss of the trained and the momentum encoder's embeddings on the unit sphere."""
        self.update_momentum_encoder()
        features = [self.encode(view) for view in views]
        keys, momentum = zip(*(self.momentum_embed(view) for view in views), strict=True)
        online = torch.stack([self.embed(r) for r in features], dim=1).float()
        target = torch.stack(momentum, dim=1).float()
        loss = self.criterion(
            torch.nn.functional.normalize(online, dim=-1),
            torch.nn.functional.normalize(target, dim=-1),
        )
        return Step(loss, tuple(features), torch.cat(keys))

    @override
    def _ldreg_rows(self, batch_size: int) -> int:
        return 4 * batch_size
