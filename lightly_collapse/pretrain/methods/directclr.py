"""DirectCLR."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightly_collapse.loss import DirectCLRLoss
from lightly_collapse.models import DirectCLRHead
from lightly_collapse.pretrain.methods.base import Method, Step


class DirectCLR(Method):
    """DirectCLR: InfoNCE on the first entries of the representation, without a projector.

    Args:
        loss_dim: how many entries; 360 of ResNet-50's 2,048 in the paper.
        temperature: of InfoNCE.
        kwargs: see `Method`.

    Source: Jing et al., ICLR 2022, arXiv 2110.09348.
    """

    def __init__(self, loss_dim: int = 360, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if loss_dim > self.feature_dim:
            raise ValueError(
                f"loss_dim must be at most the width of the backbone, {self.feature_dim}, "
                f"got {loss_dim}"
            )
        self.head = DirectCLRHead(loss_dim)
        self.criterion = DirectCLRLoss(loss_dim, temperature, gather_distributed=True)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """InfoNCE of the two views' first entries."""
        r0, r1 = (self.encode(view) for view in views)
        return Step(self.criterion(r0, r1), (r0, r1))
