"""SimCLR, with the projectors that the DirectCLR paper compares."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse.loss import DirectCLRLoss
from lightly_collapse.models import LinearProjectionHead
from lightly_collapse.pretrain.methods.base import Method, Step


class SimCLR(Method):
    """SimCLR: a contrastive loss between the embeddings of two views.

    Args:
        projector: `mlp`, two layers; `none`; or a linear one: `linear`, `orthogonal`, `diagonal`,
            `low_rank`, `low_rank_diagonal`.
        hidden_dim: of the MLP; None for the width of the representation.
        output_dim: of the projector; None for 128 (or hidden_dim, where that is less) with the MLP,
            the representation's width with a linear one, and 360/2048 of that, DirectCLR's share,
            with one of low rank.
        temperature: of the loss.
        num_layers: of the MLP.
        batch_norm: normalise every layer of the MLP over the batch.
        negatives: `both_views`, NT-Xent; or `other_view`, InfoNCE as in DirectCLR's official code,
            whose negatives are of the other view alone.
        kwargs: see `Method`.

    Source: Chen et al., ICML 2020, arXiv 2002.05709; Jing et al., ICLR 2022, arXiv 2110.09348.
    """

    def __init__(
        self,
        projector: Literal[
            "mlp", "none", "linear", "orthogonal", "diagonal", "low_rank", "low_rank_diagonal"
        ] = "mlp",
        hidden_dim: int | None = None,
        output_dim: int | None = None,
        temperature: float = 0.1,
        num_layers: int = 2,
        batch_norm: bool = True,
        negatives: Literal["both_views", "other_view"] = "both_views",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        width = self.feature_dim
        if projector == "mlp":
            hidden = hidden_dim or width
            # Its last layer is linear: more outputs than inputs would be collapsed from the start.
            self.head = SimCLRProjectionHead(
                width, hidden, output_dim or min(128, hidden), num_layers, batch_norm
            )
        elif projector == "none":
            self.head = nn.Identity()
        else:
            low = max(1, width * 360 // 2048) if projector.startswith("low_rank") else width
            self.head = LinearProjectionHead(width, output_dim or low, kind=projector)
        self.criterion: nn.Module
        if negatives == "both_views":
            self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)
        else:
            with torch.no_grad():
                width = self.head.eval()(torch.zeros(1, width)).shape[1]
            self.head.train()
            self.criterion = DirectCLRLoss(width, temperature, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The contrastive loss of the two views' embeddings."""
        r0, r1 = (self.encode(view) for view in views)
        return Step(self.criterion(self.embed(r0), self.embed(r1)), (r0, r1))
