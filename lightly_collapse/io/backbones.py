"""Backbones by name: torchvision's models, scaled ResNets and ViTs, and timm's models."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer
from typing_extensions import override

from lightly_collapse._names import check_arch
from lightly_collapse.io.conv4 import Conv4
from lightly_collapse.io.wide_resnet import WideResNet

_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}

# Layers, heads and hidden dimensions; the MLP is four times as wide.
_VITS = {
    "vit_mini": (4, 2, 64),
    "vit_tiny": (12, 3, 192),
    "vit_small": (12, 6, 384),
    "vit_base": (12, 12, 768),
    "vit_large": (24, 16, 1024),
}

# Depth and widening factor.
_WIDE_RESNETS = {"wrn28_2": (28, 2), "wrn28_10": (28, 10)}

_SMALL = "conv4"

BACKBONES = (*_RESNETS, *_VITS, *_WIDE_RESNETS, _SMALL)
"""The names that need no optional package; `timm/<model>` names a model of timm."""


@dataclass(frozen=True)
class BackboneSettings:
    """Which encoder is trained.

    Attributes:
        name: one of `BACKBONES`, or `timm/<model>`.
        stem: of a ResNet: `imagenet` (7x7 convolution with stride 2 and max pooling) or `cifar`
            (3x3 convolution with stride 1 and no pooling).
        width: filters of a ResNet's first stage, or of every convolution of conv4; 64 is the
            published width of both.
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

    @override
    def forward(self, x: Tensor, encode: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The class token, or what `encode` makes of the images: all tokens, some of them hidden.

        So that hooks on the backbone see what a method with masks trains.
        """
        return super().forward(x) if encode is None else encode(x)


def create_backbone(arch: str | BackboneSettings, **options: Any) -> nn.Module:
    """Build an encoder with random weights and without a classification layer.

    Args:
        arch: settings, or a name alone: one of `BACKBONES`, any of
            `torchvision.models.list_models()` or of `timm.list_models()`. `timm/<name>` asks for
            timm's where both have one.
        options: further arguments of torchvision's or timm's function, such as `img_size`; none
            for `BACKBONES`, whose settings say all.

    Returns:
        A module from images (n, 3, height, width) to representations (n, feature_dim), with the
        attribute `feature_dim` where the width is known. Parameters have the names that torchvision
        or timm give them.

    Raises:
        ValueError: if the name is unknown, or of timm where that is not installed; if `stem`,
            `width` or another setting does not apply to the model, or `width` is not positive; if
            a ViT's image size is not a multiple of its patch size.

    Examples:
        >>> import torch
        >>> backbone = create_backbone(BackboneSettings("resnet18", stem="cifar", width=16))
        >>> backbone.feature_dim, backbone(torch.rand(2, 3, 32, 32)).shape
        (128, torch.Size([2, 128]))
        >>> create_backbone("mobilenet_v3_small").feature_dim
        1024
    """
    settings = BackboneSettings(arch) if isinstance(arch, str) else arch
    name = settings.name
    if options and name in BACKBONES:
        raise ValueError(f"backbone {name}: give settings instead of {', '.join(options)}")
    if settings.width < 1:
        raise ValueError(f"backbone width must be at least 1, got {settings.width}")
    if name in _RESNETS:
        return _WideOrNarrowResNet(settings)
    if name == _SMALL:
        _check_plain(replace(settings, width=64))
        return Conv4(settings.width)
    if name in _VITS:
        _check_plain(settings)
        if settings.patch_size < 1 or settings.image_size % settings.patch_size:
            raise ValueError(
                f"backbone image_size must be a multiple of patch_size, got {settings.image_size} "
                f"and {settings.patch_size}"
            )
        return _ViT(settings)
    if name in _WIDE_RESNETS:
        _check_plain(settings)
        return WideResNet(*_WIDE_RESNETS[name])
    is_torchvision = name in torchvision.models.list_models(module=torchvision.models)
    model = (_torchvision if is_torchvision else _timm)(name, options)
    _check_plain(settings)
    return model


def _check_plain(settings: BackboneSettings) -> None:
    if (settings.stem, settings.width) != ("imagenet", 64):
        raise ValueError(
            f"backbone {settings.name}: stem applies to {', '.join(_RESNETS)} only, width to these "
            f"and {_SMALL}, got {settings.stem!r} and {settings.width}"
        )


def _torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    """A classification model whose last linear layer is replaced by the identity."""
    with warnings.catch_warnings():
        # Of two models, that a later version starts from other random weights.
        warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    last = [child for child, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if last and last[-1].startswith(("fc", "classifier", "head")):
        parent, _, child = last[-1].rpartition(".")
        owner = model.get_submodule(parent)
        model.feature_dim = getattr(owner, child).in_features
        setattr(owner, child, nn.Identity())
    return model


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    check_arch("arch", name)
    import timm  # noqa: PLC0415

    model_name = name.removeprefix("timm/")
    model: nn.Module = timm.create_model(model_name, pretrained=False, num_classes=0, **options)
    width: Any = getattr(model, "head_hidden_size", None) or model.num_features
    model.feature_dim = width
    return model
