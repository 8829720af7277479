"""Masked autoencoder."""

from collections.abc import Sequence
from typing import Any

from lightly.models import utils
from lightly.models.modules.masked_autoencoder import MAEDecoder
from lightly.models.modules.masked_vision_transformer_torchvision import (
    MaskedVisionTransformerTorchvision,
)
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchvision.models.vision_transformer import VisionTransformer
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class MAE(Method):
    """MAE: a ViT encodes a part of the patches, and a decoder predicts the pixels of the others.

    The representation is the class token: of the visible patches in training, of the whole image
    in evaluation. The views should be crops and flips alone, without changes of colour.

    Args:
        mask_ratio: share of the patches that is hidden.
        decoder_layers: transformer blocks of the decoder.
        decoder_heads: its attention heads.
        decoder_dim: its width.
        normalize_patches: predict each patch with mean zero and standard deviation one.
        kwargs: see `Method`; the backbone must be a ViT.

    Source: He et al., CVPR 2022, arXiv 2111.06377.
    """

    global_views = 1

    def __init__(
        self,
        mask_ratio: float = 0.75,
        decoder_layers: int = 8,
        decoder_heads: int = 16,
        decoder_dim: int = 512,
        normalize_patches: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        vit = self.backbone
        if not isinstance(vit, VisionTransformer):
            raise ValueError(
                "MAE needs a ViT of torchvision as its backbone (vit_tiny, vit_small, vit_base, "
                f"vit_large), got {self.backbone_settings.name}"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {mask_ratio}")
        # In a list: the ViT in it is the backbone, and its weights go into the state once.
        self._masked = [MaskedVisionTransformerTorchvision(vit)]
        self.decoder = MAEDecoder(
            seq_length=vit.seq_length,
            num_layers=decoder_layers,
            num_heads=decoder_heads,
            embed_input_dim=self.feature_dim,
            hidden_dim=decoder_dim,
            mlp_dim=4 * decoder_dim,
            out_dim=3 * vit.patch_size**2,
        )
        self.mask_token = nn.Parameter(
            nn.init.normal_(vit.class_token.new_empty(1, 1, decoder_dim), std=0.02)
        )
        self.mask_ratio = mask_ratio
        self.normalize_patches = normalize_patches

    @override
    def trainable_modules(self) -> list[nn.Module]:
        """The backbone, the decoder and the mask token."""
        return [self.backbone, self.decoder, nn.ParameterList([self.mask_token])]

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The mean squared error of the hidden patches."""
        (images,) = views
        vit = self._masked[0].vit
        keep, mask = utils.random_token_mask(
            size=(len(images), vit.seq_length), mask_ratio=self.mask_ratio, device=images.device
        )
        encoded = self.backbone(images, lambda x: self._masked[0].encode(x, idx_keep=keep))
        tokens = utils.repeat_token(self.mask_token, (len(images), vit.seq_length))
        visible = self.decoder.embed(encoded)
        tokens = utils.set_at_index(tokens.type_as(visible), keep, visible)
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), mask))
        # The class token is the sequence's first; patches are counted without it.
        target = utils.get_at_index(utils.patchify(images, vit.patch_size), mask - 1)
        if self.normalize_patches:
            spread = target.var(dim=-1, keepdim=True).add(1e-6).sqrt()
            target = (target - target.mean(dim=-1, keepdim=True)) / spread
        return Step(mse_loss(predicted, target), (encoded[:, 0],))
