"""Backbones by name: torchvision's ResNets and ViTs, and timm's models where it is installed."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}

# Layers, heads and hidden dimensions; the MLP is four times as wide.
_VITS = {
    "vit_tiny": (12, 3, 192),
    "vit_small": (12, 6, 384),
    "vit_base": (12, 12, 768),
    "vit_large": (24, 16, 1024),
}

BACKBONES = (*_RESNETS, *_VITS)
"""The names that need no optional package; `timm/<model>` names a model of timm."""


@dataclass(frozen=True)
class BackboneSettings:
    """Which encoder is trained.

    Attributes:
        name: one of `BACKBONES`, or `timm/<model>`.
        stem: of a ResNet: `imagenet` (7x7 convolution with stride 2 and max pooling) or `cifar`
            (3x3 convolution with stride 1 and no pooling).
        width: of a ResNet: filters of its first stage; 64 is the published width.
        zero_init_residual: of a ResNet: start every residual branch at zero.
        image_size: of a ViT: height and width of its images, in pixels.
        patch_size: of a ViT: height and width of a patch, in pixels.
    """

    name: str = "resnet18"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    width: int = 64
    zero_init_residual: bool = False
    image_size: int = 224
    patch_size: int = 16


class _WideOrNarrowResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with `width` filters in its first stage instead of 64."""

    def __init__(self, settings: BackboneSettings) -> None:
        block, layers = _RESNETS[settings.name]
        self._width = settings.width
        super().__init__(block, layers, zero_init_residual=settings.zero_init_residual)
        if settings.stem == "cifar":
            self.conv1 = nn.Conv2d(3, settings.width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, settings.width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(settings.width)
        self.feature_dim = 8 * settings.width * block.expansion
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._width
        layer: nn.Sequential = super()._make_layer(
            block, planes * self._width // 64, *args, **kwargs
        )
        return layer


class _ViT(VisionTransformer):  # type: ignore[misc]
    """torchvision's ViT, its class token as the representation."""

    def __init__(self, settings: BackboneSettings) -> None:
        layers, heads, hidden = _VITS[settings.name]
        super().__init__(
            image_size=settings.image_size,
            patch_size=settings.patch_size,
            num_layers=layers,
            num_heads=heads,
            hidden_dim=hidden,
            mlp_dim=4 * hidden,
        )
        self.feature_dim = hidden
        self.heads = nn.Identity()


class _TimmBackbone(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        if find_spec("timm") is None:
            raise ValueError(f"backbone timm/{name} needs timm: pip install timm")
        import timm  # noqa: PLC0415

        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
            raise ValueError(
                f"backbone timm/{name} is no model of timm; "
                + (f"there are {', '.join(near)}, ..." if near else "see timm.list_models()")
            )
        self.model = timm.create_model(name, num_classes=0)
        self.feature_dim = int(self.model.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features


def create_backbone(settings: BackboneSettings) -> nn.Module:
    """Build an encoder with freshly drawn weights.

    Args:
        settings: which one.

    Returns:
        A module from images (n, 3, height, width) to representations (n, feature_dim), with the
        attribute `feature_dim`. Parameters of a ResNet or a ViT have torchvision's names.

    Raises:
        ValueError: if the name is unknown, `width` is not positive, or a ViT's images do not
            divide into its patches.

    Examples:
        >>> import torch
        >>> backbone = create_backbone(BackboneSettings("resnet18", stem="cifar", width=16))
        >>> backbone.feature_dim, backbone(torch.rand(2, 3, 32, 32)).shape
        (128, torch.Size([2, 128]))
    """
    if settings.name in _RESNETS:
        if settings.width < 1:
            raise ValueError(f"backbone width must be at least 1, got {settings.width}")
        return _WideOrNarrowResNet(settings)
    if settings.name in _VITS:
        if settings.patch_size < 1 or settings.image_size % settings.patch_size:
            raise ValueError(
                f"backbone image_size must be a multiple of patch_size, got {settings.image_size} "
                f"and {settings.patch_size}"
            )
        return _ViT(settings)
    if settings.name.startswith("timm/"):
        return _TimmBackbone(settings.name.removeprefix("timm/"))
    raise ValueError(
        f"backbone name must be one of {', '.join(BACKBONES)} or timm/<model>, "
        f"got {settings.name!r}"
    )
