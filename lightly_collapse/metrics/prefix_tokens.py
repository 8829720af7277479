"""How many tokens stand before the patches in a transformer's sequence, and whether one is CLS."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_OTHER_TOKENS = (
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
    "storage_tokens",
)
# What these give are patches alone: the other tokens are put before them later.
_PATCH_EMBEDDINGS = ("patch_embed", "patch_embeddings", "patch_embedding", "conv_proj")
_DEPTH = 2


@dataclass(frozen=True)
class PrefixTokens:
    """The tokens before the patches.

    Attributes:
        count: class, distillation and register tokens together.
        has_class_token: whether the first of them is the class token.
    """

    count: int = 0
    has_class_token: bool = False


def prefix_tokens(root: nn.Module, layer: str, tokens: int | None = None) -> PrefixTokens:
    """The prefix tokens in the output of a layer, from the transformer that holds it.

    Found are timm's (`num_prefix_tokens`), torchvision's (`class_token`), those of transformers'
    ViT, DeiT, DINOv2 and DINOv3, of the official DINO repositories and of Lightly's masked
    transformers, by the names of their parameters.

    Args:
        root: the model.
        layer: name of the layer in it, as in `named_modules()`.
        tokens: the length of the sequence, where it is known.

    Returns:
        Their number; none for a layer that gives patches alone, or where there is no transformer.

    Raises:
        AttributeError: if there is no such layer.

    Examples:
        >>> from torchvision.models import VisionTransformer
        >>> vit = VisionTransformer(32, 16, 1, 2, 8, 16)
        >>> prefix_tokens(vit, "encoder.layers.encoder_layer_0")
        PrefixTokens(count=1, has_class_token=True)
        >>> prefix_tokens(nn.Conv1d(3, 8, 1), "").count
        0
    """
    root.get_submodule(layer)
    if any(part in _PATCH_EMBEDDINGS for part in layer.split(".")):
        return PrefixTokens()
    path = layer
    while True:
        owner = root.get_submodule(path)
        found = _of_transformer(owner)
        if found is not None:
            return PrefixTokens() if tokens is not None and tokens in _patches(owner) else found
        if not path:
            return PrefixTokens()
        path = path.rpartition(".")[0]


def _of_transformer(module: nn.Module) -> PrefixTokens | None:
    """Told by the module itself or what it holds a level or two below, as `.vit`, `.embeddings`."""
    level = [module]
    for _ in range(_DEPTH + 1):
        for m in level:
            found = _of_module(m)
            if found is not None:
                return found
        level = [child for m in level for child in m.children()]
    return None


def _of_module(module: nn.Module) -> PrefixTokens | None:
    has_class = _has_class_token(module)
    count = getattr(module, "num_prefix_tokens", None)
    # The attention layers of timm's EVA have the number too, but not the tokens.
    if isinstance(count, int) and (has_class or hasattr(module, "blocks")):
        has_class = has_class or any(_has_class_token(child) for child in module.children())
        return PrefixTokens(count, has_class and count > 0)
    count = sum(_length(module, name) for name in (*_CLASS_TOKENS, *_OTHER_TOKENS))
    return PrefixTokens(count, has_class) if count else None


def _has_class_token(module: nn.Module) -> bool:
    return any(_length(module, name) for name in _CLASS_TOKENS)


def _length(module: nn.Module, name: str) -> int:
    token: Any = getattr(module, name, None)
    if not isinstance(token, Tensor):
        return 0
    return token.shape[-2] if token.ndim > 1 else 1


def _patches(module: nn.Module) -> set[int]:
    """Numbers of patches that the module's patch embeddings give: the length without a prefix."""
    found = (getattr(m, "num_patches", None) for m in module.modules())
    return {count for count in found if isinstance(count, int)}
