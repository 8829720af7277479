"""NNBYOL."""

from typing import Any

from lightly.models.modules import NNMemoryBankModule
from torch import Tensor
from typing_extensions import override

from lightly_collapse.pretrain.methods.byol import BYOL


class NNBYOL(BYOL):
    """BYOL whose targets are the nearest neighbours of the momentum projections in a queue.

    Args:
        queue_size: how many earlier momentum projections are kept.
        hidden_dim: of the projector's hidden layer.
        output_dim: of projector and predictor.
        start_momentum: of the momentum encoder; it rises to 1 on a cosine.
        kwargs: see `BYOL` and `Method`.

    Source: the BYOL variant of Dwibedi et al., ICCV 2021, arXiv 2104.14548, and solo-learn.
    """

    def __init__(
        self,
        queue_size: int = 65536,
        hidden_dim: int = 4096,
        output_dim: int = 256,
        start_momentum: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hidden_dim=hidden_dim,
            output_dim=output_dim,
            start_momentum=start_momentum,
            **kwargs,
        )
        self.queue = NNMemoryBankModule(size=(queue_size, output_dim))

    @override
    def targets(self, z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest neighbours in the queue, which the first view's projections then enter."""
        # Both views are looked up before either enters: the nearest neighbour of a view would
        # otherwise be the other view of its own image.
        n1 = self.queue(z1, update=False)
        return self.queue(z0, update=True), n1
