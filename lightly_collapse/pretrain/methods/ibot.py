"""iBOT."""

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import IBOTPatchLoss
from lightly.models.modules.masked_vision_transformer_torchvision import (
    MaskedVisionTransformerTorchvision,
)
from lightly.models.utils import random_block_mask, update_momentum
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Step
from lightly_collapse.pretrain.methods.dino import DINO

_LEAST_SIDE = 4


class IBOT(DINO):
    """iBOT: DINO, and the teacher's distribution of every patch that is hidden from the student.

    Half of the images have a block of patches hidden; class token and patches share a head. The
    representation is the class token.

    Args:
        patch_weight: of the patches' loss beside the class token's.
        kwargs: see `DINO`; the backbone must be a ViT of torchvision.

    Source: Zhou et al., ICLR 2022, arXiv 2111.07832.
    """

    def __init__(self, patch_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        vit = self.backbone
        if not isinstance(vit, VisionTransformer):
            raise ValueError(
                "IBOT needs a ViT of torchvision as its backbone (vit_tiny, vit_small, vit_base, "
                f"vit_large), got {self.backbone_settings.name}"
            )
        if not 0 <= patch_weight < float("inf"):
            raise ValueError(f"patch_weight must be finite and not negative, got {patch_weight}")
        settings = self.backbone_settings
        self._side = settings.image_size // settings.patch_size
        if self._side < _LEAST_SIDE:
            raise ValueError(
                f"IBOT hides blocks of patches and needs at least {_LEAST_SIDE} to a side: "
                f"backbone image_size {settings.image_size} and patch_size "
                f"{settings.patch_size} give {self._side}"
            )
        self.patch_weight = patch_weight
        self.mask_token = nn.Parameter(
            nn.init.normal_(vit.class_token.new_empty(1, 1, self.feature_dim), std=0.02)
        )
        # In a list: the ViTs in them are backbone and teacher, whose weights are in the state.
        self._masked = [
            MaskedVisionTransformerTorchvision(
                network, mask_token=self.mask_token, pos_embed_initialization="skip"
            )
            for network in (vit, self.teacher_backbone)
        ]
        self.teacher_backbone.load_state_dict(vit.state_dict())
        self.patch_criterion = IBOTPatchLoss(self.student.last_layer.out_features)

    @override
    def trainable_modules(self) -> list[nn.Module]:
        """Backbone and head of the student, and the mask token."""
        return [*super().trainable_modules(), nn.ParameterList([self.mask_token])]

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """DINO's cross-entropy of class tokens, and that of the hidden patches."""
        momentum = self.momentum(self.start_momentum)
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student, self.teacher, m=momentum)
        student, teacher = self._masked
        images = torch.cat(list(views[:2]))
        block = random_block_mask(
            (len(images), self._side, self._side),
            # No more than an image with the fewest hidden patches, a tenth, has of them.
            min_num_masks_per_block=max(1, min((self._side // 3) ** 2, self._side**2 // 10)),
            device=images.device,
        )
        hidden = nn.functional.pad(block.flatten(1), (1, 0))  # the class token is always seen
        with torch.no_grad():
            seen = teacher.encode(images)
            targets = self.teacher(seen[:, 0])
            patch_targets = self.teacher(seen[hidden])
        tokens = self.backbone(images, lambda x: student.encode(x, mask=hidden))
        self._expect_finite("the representation holds NaN or inf", tokens)
        features = [*tokens[:, 0].chunk(2), *(self.encode(view) for view in views[2:])]
        temperature = self.temperature_now()
        loss = self.criterion(
            targets.chunk(2), [self.student(r) for r in features], teacher_temp=temperature
        )
        patches = self.patch_criterion(
            patch_targets, self.student(tokens[hidden]), block, teacher_temp=temperature
        )
        return Step(loss + self.patch_weight * patches, (features[0], features[1]))
