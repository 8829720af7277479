"""What methods with a momentum encoder have in common."""

import copy
from typing import Any

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn

from lightly_collapse.pretrain.methods.base import Method


class MomentumMethod(Method):
    """A method with a second encoder, whose weights are a moving average of the trained ones.

    A subclass calls `add_momentum_encoder` once its head is made, and `momentum_embed` in a step.

    Args:
        start_momentum: m of w' <- m w' + (1 - m) w at the first step.
        end_momentum: m at the last step, which it reaches on a cosine.
        kwargs: see `Method`.
    """

    momentum_backbone: nn.Module
    momentum_head: nn.Module

    def __init__(self, start_momentum: float, end_momentum: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("start_momentum", start_momentum), ("end_momentum", end_momentum)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.start_momentum, self.end_momentum = start_momentum, end_momentum

    def add_momentum_encoder(self) -> None:
        """Copy backbone and head as they are now."""
        self.momentum_backbone = copy.deepcopy(self.backbone)
        self.momentum_head = copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)

    def update_momentum_encoder(self) -> None:
        """Move the momentum encoder towards the trained weights."""
        momentum = self.momentum(self.start_momentum, self.end_momentum)
        update_momentum(self.backbone, self.momentum_backbone, m=momentum)
        update_momentum(self.head, self.momentum_head, m=momentum)

    @torch.no_grad()
    def momentum_embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The momentum encoder's representations and embeddings.

        Args:
            images: (n, 3, height, width).

        Returns:
            Its (n, feature_dim) representations and their embeddings, without gradient.
        """
        features = self.encode(images, self.momentum_backbone)
        return features, self.momentum_head(features)
