"""MoCo v3."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from typing_extensions import override

from lightly_collapse._distributed import gather_rows, gathering
from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.momentum import MomentumMethod


class MoCoV3(MomentumMethod):
    """MoCo v3: predictions against the momentum encoder's projections of the other view, no queue.

    The loss is the sum over both directions of 2 T times the cross-entropy of the cosines over T,
    where the negatives are the other images of the batch: algorithm 1 of the paper.

    Args:
        hidden_dim: of projector and predictor.
        output_dim: of projector and predictor.
        temperature: T.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        kwargs: see `Method`.

    Source: Chen, Xie and He, ICCV 2021, arXiv 2104.02057.
    """

    def __init__(
        self,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        temperature: float = 1.0,
        start_momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(start_momentum=start_momentum, **kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        # As in the official code: two layers project a ResNet's features and three a ViT's; the
        # last BatchNorm has no weights, and the predictor of a ResNet has none at the end.
        residual = self.backbone_settings.name.startswith(("resnet", "wrn"))
        last = nn.BatchNorm1d(output_dim, affine=False)
        head = MoCoProjectionHead(
            *(self.feature_dim, hidden_dim, output_dim),
            num_layers=2 if residual else 3,
            batch_norm=True,
        )
        head.layers[-1] = last
        predictor = MoCoProjectionHead(output_dim, hidden_dim, output_dim, batch_norm=True)
        predictor.layers[-1] = nn.Identity() if residual else copy.deepcopy(last)
        self.head, self.predictor = head, predictor
        self.add_momentum_encoder()
        self.temperature = temperature

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The contrastive losses of both directions, added."""
        self.update_momentum_encoder()
        r0, r1 = (self.encode(view) for view in views)
        q0, q1 = (self.predictor(self.embed(r)) for r in (r0, r1))
        (t0, k0), (t1, k1) = (self.momentum_embed(view) for view in views)
        return Step(self.contrast(q0, k1) + self.contrast(q1, k0), (r0, r1), torch.cat([t0, t1]))

    def contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """2 T times the cross-entropy of each query with its own key among all processes' keys.

        Args:
            queries: (n, output_dim).
            keys: (n, output_dim), in the same order.
        """
        queries, keys = normalize(queries), normalize(keys)
        first = 0
        if gathering():
            first = len(keys) * torch.distributed.get_rank()
            keys = gather_rows(keys)
        own = torch.arange(first, first + len(queries), device=queries.device)
        return 2 * self.temperature * cross_entropy(queries @ keys.T / self.temperature, own)

    @override
    def _ldreg_rows(self, batch_size: int) -> int:
        return 4 * batch_size
