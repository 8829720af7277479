"""ViTDet's backbone in torch alone: a plain vision transformer and its simple feature pyramid.

Names and shapes of the tensors are those of detectron2's `ViT` and `SimpleFeaturePyramid`, so that
one exported file serves both trainers. Source: Li et al., Exploring Plain Vision Transformer
Backbones for Object Detection (2022), section 3.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth
from typing_extensions import override

from detection.torchvision.config import Config


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels), attention over all positions."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv)
        return self.proj(mixed.transpose(1, 2).reshape(b, h, w, c))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float, window: int, drop: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * ratio)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        )
        self.drop_path = StochasticDepth(drop, "row")

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = _in_windows(self.attn, y, self.window) if self.window else self.attn(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _in_windows(attention: nn.Module, x: Tensor, size: int) -> Tensor:
    """Attention within windows of size x size; the borders are padded with zeros."""
    b, h, w, c = x.shape
    rows, columns = -(-h // size), -(-w // size)
    x = functional.pad(x, (0, 0, 0, columns * size - w, 0, rows * size - h))
    x = x.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size, size, c)
    x = attention(x).view(b, rows, columns, size, size, c).transpose(2, 3)
    return x.reshape(b, rows * size, columns * size, c)[:, :h, :w]


class ViT(nn.Module):
    """A plain vision transformer over images of any size, without a class token.

    Args:
        patch_size: pixels a patch.
        width: channels.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: hidden channels of the feed-forward part over `width`.
        pretrain_size: height and width of the images in pretraining, for the position embedding.
        window_size: patches, of the attention in blocks outside `global_blocks`; 0 for none.
        global_blocks: numbers of the blocks with global attention.
        drop_path: rate of stochastic depth in the last block, from 0 in the first.
    """

    def __init__(
        self,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        pretrain_size: int = 224,
        window_size: int = 0,
        global_blocks: tuple[int, ...] = (),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, width, patch_size, stride=patch_size)}
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_size // patch_size) ** 2, width))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        windows = [0 if i in global_blocks else window_size for i in range(depth)]
        self.blocks = nn.ModuleList(
            _Block(width, heads, mlp_ratio, window, rate)
            for window, rate in zip(windows, rates, strict=True)
        )
        self.apply(_initialize)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, channels, height / patch, width / patch)."""
        x = self.patch_embed["proj"](images).permute(0, 2, 3, 1)
        x = x + resize_positions(self.pos_embed, x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


def resize_positions(positions: Tensor, height: int, width: int) -> Tensor:
    """A square position embedding for another grid, by bicubic interpolation as in detectron2.

    Args:
        positions: (1, n * n, channels).
        height: of the grid, in patches.
        width: of the grid, in patches.

    Returns:
        (1, height, width, channels).
    """
    side = round(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, side, side, -1)
    if (height, width) == (side, side):
        return grid
    return functional.interpolate(
        grid.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False
    ).permute(0, 2, 3, 1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Projection(nn.Conv2d):
    """A convolution without bias, and its norm under the name that detectron2 gives it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = _ChannelNorm(out_channels, eps=1e-6)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class SimpleFeaturePyramid(nn.Module):
    """Levels of stride 4, 8, 16, 32 and 64 out of one map of stride 16.

    Args:
        net: the transformer.
        width: its channels.
        out_channels: of the levels.
    """

    def __init__(self, net: nn.Module, width: int, out_channels: int) -> None:
        super().__init__()
        self.net = net
        self.out_channels = out_channels

        def level(channels: int, *layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                *layers,
                _Projection(channels, out_channels, 1),
                _Projection(out_channels, out_channels, 3),
            )

        half, quarter = width // 2, width // 4
        self.simfp_2 = level(
            quarter,
            nn.ConvTranspose2d(width, half, 2, stride=2),
            _ChannelNorm(half, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.simfp_3 = level(half, nn.ConvTranspose2d(width, half, 2, stride=2))
        self.simfp_4 = level(width)
        self.simfp_5 = level(width, nn.MaxPool2d(2, stride=2))

    @override
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by level, finest first, as torchvision's detectors name them."""
        features = self.net(images)
        levels = [getattr(self, f"simfp_{i}")(features) for i in range(2, 6)]
        named: dict[str, Any] = OrderedDict((str(i), level) for i, level in enumerate(levels))
        named["pool"] = functional.max_pool2d(levels[-1], kernel_size=1, stride=2)
        return named


def build_vit_pyramid(config: Config) -> SimpleFeaturePyramid:
    """The transformer and pyramid that a configuration asks for.

    Raises:
        ValueError: if the patch size is not 16, which the pyramid's strides need.
    """
    vit = config["MODEL"]["VIT"]
    if vit["PATCH_SIZE"] != 16:
        raise ValueError(
            f"config: MODEL.VIT.PATCH_SIZE must be 16 for the pyramid, got {vit['PATCH_SIZE']}"
        )
    net = ViT(
        vit["PATCH_SIZE"],
        vit["EMBED_DIM"],
        vit["DEPTH"],
        vit["NUM_HEADS"],
        vit["MLP_RATIO"],
        vit["PRETRAIN_SIZE"],
        vit["WINDOW_SIZE"],
        tuple(vit["GLOBAL_BLOCKS"]),
        vit["DROP_PATH"],
    )
    return SimpleFeaturePyramid(net, vit["EMBED_DIM"], config["MODEL"]["FPN"]["OUT_CHANNELS"])
