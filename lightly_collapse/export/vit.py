"""A plain vision transformer found in a checkpoint, in the form of detectron2's ViTDet backbone.

ViTDet has no class token, no register tokens and no last norm; the position embedding is that of
the patches. LayerScale (DINOv2, DeiT III) is multiplied into the weights before it, which leaves
the output as it is. Source: Li et al., Exploring Plain Vision Transformer Backbones for Object
Detection (2022).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightly_collapse.io.networks import choose_network, find_networks

_TORCHVISION = (
    (re.compile(r"^conv_proj\."), "patch_embed.proj."),
    (re.compile(r"^encoder\.pos_embedding$"), "pos_embed"),
    (re.compile(r"^class_token$"), "cls_token"),
    (re.compile(r"^encoder\.layers\.encoder_layer_(\d+)\."), r"blocks.\1."),
    (re.compile(r"^encoder\.ln\."), "norm."),
    (re.compile(r"\.ln_([12])\."), r".norm\1."),
    (re.compile(r"\.self_attention\.in_proj_(weight|bias)$"), r".attn.qkv.\1"),
    (re.compile(r"\.self_attention\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.mlp\.(?:0|linear_1)\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.(?:3|linear_2)\."), ".mlp.fc2."),
)
_PARTS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_OF_A_BLOCK = {f"{part}.{kind}" for part in _PARTS for kind in ("weight", "bias")}
_LEFT_OUT = re.compile(
    r"(?:cls_token|dist_token|reg_token|register_tokens|mask_token|head_dist|heads?|norm|fc_norm"
    r"|attn_pool|decoder\w*)(?:\..*)?"
)
# FSDP checkpoints of DINOv2 keep the blocks in chunks: blocks.<chunk>.<number in the network>.
_CHUNK = re.compile(r"\bblocks\.\d+\.(?=\d+\.)")
_PATCH_SIZE = 16
_EPSILON = 1e-6
_PATCH_EMBEDDING = ("patch_embed.proj.weight", "patch_embed.proj.bias")


@dataclass(frozen=True)
class ViTShape:
    """A plain vision transformer as MODEL.VIT describes one.

    Attributes:
        width: channels.
        depth: number of blocks.
        heads: of the attention.
        mlp_ratio: hidden channels of the feed-forward part over `width`.
        pretrain_size: side of the position embedding's grid times the patch size, in pixels.
        patch_size: in pixels.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    pretrain_size: int
    patch_size: int = _PATCH_SIZE

    @property
    def name(self) -> str:
        """A readable name.

        Examples:
            >>> ViTShape(384, 12, 6, 4.0, 224).name
            'ViT of width 384, 12 blocks, 6 heads'
        """
        return f"ViT of width {self.width}, {self.depth} blocks, {self.heads} heads"

    @property
    def global_blocks(self) -> tuple[int, ...]:
        """The blocks with global attention: four, evenly spaced (ViTDet, section 3).

        Examples:
            >>> ViTShape(768, 12, 12, 4.0, 224).global_blocks
            (2, 5, 8, 11)
        """
        groups = math.gcd(self.depth, 4)
        return tuple((i + 1) * self.depth // groups - 1 for i in range(groups))


@dataclass(frozen=True)
class VisionTransformer:
    """A transformer found somewhere.

    Attributes:
        prefix: the part of its names before timm's or torchvision's.
        shape: which transformer it is.
        state: tensors by detectron2's names (`blocks.0.attn.qkv.weight`), float32, on the CPU.
        left_out: names, as they were given, of the tensors that are not part of `state`.
        candidates: the prefixes of all transformers that were found.
        notes: what was changed on the way.
        is_checked: whether a module's first block was run and computes what ViTDet's does. A state
            dict does not show heads, activation or the norms' epsilon.
    """

    prefix: str
    shape: ViTShape
    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    candidates: tuple[str, ...]
    notes: tuple[str, ...]
    is_checked: bool


def find_vit(
    source: nn.Module | Mapping[str, Tensor], prefix: str | None = None, heads: int | None = None
) -> VisionTransformer | None:
    """Find the one plain vision transformer of timm's or torchvision's names, DINOv2's included.

    Args:
        source: a module or a state dict.
        prefix: of its names; by default the only one that is no momentum or teacher network.
        heads: of the attention, which a state dict does not show; by default those of the module,
            or one for each 64 channels (80 in a ViT-H).

    Returns:
        The transformer; None where there is none.

    Raises:
        ValueError: if ViTDet has no such transformer (rotary or relative positions, SwiGLU, norms
            of queries and keys), a tensor is missing or not finite, or the heads are unknown.
    """
    state = dict(source.state_dict()) if isinstance(source, nn.Module) else dict(source)
    wanted = [f"blocks.0.{name}" for name in _OF_A_BLOCK]
    own = {name: _timm_name(name) for name in state}
    networks = [
        network
        for network in find_networks(own.values(), wanted)
        # A Swin's stages and an autoencoder's decoder have blocks, but no patch embedding.
        if {"blocks.0.attn.proj.weight", "patch_embed.proj.weight"} <= {*network.names.values()}
    ]
    if not networks:
        return None
    by_timm = {_timm_name(name): tensor for name, tensor in state.items()}
    network = choose_network(networks, by_timm, prefix, what="vision transformer")
    tensors = {inner: by_timm[name] for name, inner in network.names.items()}
    notes: list[str] = []
    kept, left = _split(tensors)
    converted = {name: _as_float32(tensor, name) for name, tensor in kept.items()}
    _fold_layer_scale(converted, tensors, notes)
    depth = _depth(converted)
    converted["pos_embed"] = _patch_positions(converted, tensors)
    _resize_patches(converted, notes)
    width = converted["patch_embed.proj.weight"].shape[0]
    is_checked = False
    if isinstance(source, nn.Module):
        block = next(n for n in state if own[n] == f"{network.prefix}blocks.0.attn.proj.weight")
        owner = source.get_submodule(network.prefix.rstrip("."))
        heads = _check_module(owner) or heads
        is_checked = _computes_the_same(
            source.get_submodule(block.rsplit(".", 3)[0]), converted, _heads(width, heads)
        )
    shape = ViTShape(
        width=width,
        depth=depth,
        heads=_heads(width, heads),
        mlp_ratio=converted["blocks.0.mlp.fc1.weight"].shape[0] / width,
        pretrain_size=_PATCH_SIZE * math.isqrt(converted["pos_embed"].shape[1]),
    )
    used = {name for name, inner in network.names.items() if inner not in left}
    if any(name.endswith(("reg_token", "register_tokens")) for name in left):
        notes.append("register tokens dropped: ViTDet has none, so features differ from theirs")
    return VisionTransformer(
        network.prefix,
        shape,
        converted,
        tuple(name for name in state if own[name] not in used),
        tuple(n.prefix for n in networks),
        tuple(notes),
        is_checked,
    )


def _timm_name(name: str) -> str:
    """Torchvision's and DINOv2's names as timm's, under any prefix; others unchanged."""
    name = _CHUNK.sub("blocks.", name)
    prefix = re.match(r"^((?:.*?\.)?)(?=conv_proj\.|encoder\.|class_token$)", name)
    before = prefix[1] if prefix else ""
    inner = name[len(before) :]
    if not re.match(r"conv_proj\.|encoder\.(?:pos_embedding$|layers\.|ln\.)|class_token$", inner):
        return name
    for pattern, replacement in _TORCHVISION:
        inner = pattern.sub(replacement, inner)
    return before + inner


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors of ViTDet's form, and the names of those to leave out."""
    kept: dict[str, Tensor] = {}
    left: set[str] = set()
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.\d+\.(.*)", name)
        if name in {"patch_embed.proj.weight", "patch_embed.proj.bias"} or (
            block and block[1] in _OF_A_BLOCK
        ):
            kept[name] = tensor
        elif name == "pos_embed" or (block and re.fullmatch(r"ls[12]\.gamma", block[1])):
            continue  # taken up below
        elif _LEFT_OUT.fullmatch(name):
            left.add(name)
        else:
            raise ValueError(
                f"backbone: {name} has no place in ViTDet's transformer (rotary or relative "
                f"positions, gated feed-forward layers, norms of queries or before the blocks "
                f"cannot be exported)"
            )
    return kept, left


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"backbone: {name} holds NaN or inf")
    return tensor


def _depth(state: dict[str, Tensor]) -> int:
    """The number of blocks, each complete; an attention without bias gets one of zeros."""
    numbers = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"backbone: blocks {sorted(numbers)} are not complete")
    for i in numbers:
        qkv = state.get(f"blocks.{i}.attn.qkv.weight")
        if qkv is not None:
            state.setdefault(f"blocks.{i}.attn.qkv.bias", torch.zeros(qkv.shape[0]))
        for part in sorted(_OF_A_BLOCK):
            if f"blocks.{i}.{part}" not in state:
                raise ValueError(f"backbone: blocks.{i}.{part} is missing")
    for name in _PATCH_EMBEDDING:
        if name not in state:
            raise ValueError(f"backbone: {name} is missing")
    return len(numbers)


def _fold_layer_scale(
    state: dict[str, Tensor], tensors: Mapping[str, Tensor], notes: list[str]
) -> None:
    """Gamma * (W x + b) = (gamma W) x + gamma b."""
    folded = 0
    for name, gamma in tensors.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            part = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            scale = _as_float32(gamma, name)
            state[f"{part}.weight"] = state[f"{part}.weight"] * scale[:, None]
            state[f"{part}.bias"] = state[f"{part}.bias"] * scale
            folded += 1
    if folded:
        notes.append(f"LayerScale multiplied into the {folded} layers before it")


def _patch_positions(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """The position embedding of the patches, (1, n * n, width), without those of prefix tokens."""
    positions = tensors.get("pos_embed")
    width = state["patch_embed.proj.weight"].shape[0]
    if positions is None or positions.ndim != 3 or positions.shape[2] != width:
        raise ValueError("backbone: no learned position embedding of shape (1, positions, width)")
    count = positions.shape[1]
    registers = [t.shape[1] for n, t in tensors.items() if n in {"reg_token", "register_tokens"}]
    for extra in (0, 1, 2, *(1 + n for n in registers)):
        if math.isqrt(count - extra) ** 2 == count - extra:
            return _as_float32(positions[:, extra:], "pos_embed")
    raise ValueError(f"backbone: {count} positions are no square grid of patches")


def _resize_patches(state: dict[str, Tensor], notes: list[str]) -> None:
    """Patches of another size are resized to 16 pixels, which the pyramid's strides need."""
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(
            f"backbone: the patch embedding must have shape (width, 3, size, size), got "
            f"{tuple(kernel.shape)}"
        )
    if kernel.shape[2] != _PATCH_SIZE:
        state["patch_embed.proj.weight"] = resize_patch_kernel(kernel, _PATCH_SIZE)
        notes.append(f"patch embedding resized from {kernel.shape[2]} to {_PATCH_SIZE} pixels")


def resize_patch_kernel(kernel: Tensor, size: int) -> Tensor:
    """A patch embedding for patches of another size, by the pseudoinverse of resizing.

    For larger patches the new kernel gives on every resized patch what the old one gives on the
    original (Beyer et al., FlexiViT, 2023, section 3.4).

    Args:
        kernel: (width, channels, old, old).
        size: of the new patches.

    Returns:
        (width, channels, size, size).
    """
    old = kernel.shape[-1]
    basis = torch.eye(old * old, dtype=torch.float64).reshape(old * old, 1, old, old)
    resize = functional.interpolate(basis, size=(size, size), mode="bicubic", align_corners=False)
    # Rows: old pixels, columns: new ones, so that resize.T @ patch is the resized patch.
    matrix = resize.reshape(old * old, size * size)
    inverse = torch.linalg.pinv(matrix)
    flat: Tensor = kernel.double().flatten(2) @ inverse.T
    return flat.reshape(*kernel.shape[:2], size, size).to(kernel.dtype)


def _check_module(owner: nn.Module) -> int | None:
    """The heads of the module; an error where it computes what ViTDet's form does not."""
    for name, module in owner.named_modules():
        if isinstance(module, nn.LayerNorm) and ".norm" in f".{name}" and module.eps != _EPSILON:
            raise ValueError(f"backbone: {name} has epsilon {module.eps}, ViTDet's is {_EPSILON}")
        if type(module).__name__ in {"QuickGELU", "SiLU", "ReLU"} or (
            isinstance(module, nn.GELU) and module.approximate != "none"
        ):
            raise ValueError(f"backbone: {name} is a {type(module).__name__}, ViTDet's is GELU")
    counts = {heads for module in owner.modules() if isinstance(heads := _heads_of(module), int)}
    return counts.pop() if len(counts) == 1 else None


def _computes_the_same(block: nn.Module, state: Mapping[str, Tensor], heads: int) -> bool:
    """Run the module's first block beside ViTDet's; False where tokens alone do not run it."""
    parameter = next(block.parameters())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 6, state["blocks.0.norm1.weight"].shape[0], generator=generator)
    training = {module: module.training for module in block.modules()}
    try:
        with torch.no_grad():
            theirs = block.eval()(tokens.to(parameter.device, parameter.dtype))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    finally:
        for module, was_training in training.items():
            module.training = was_training
    ours = _first_block(tokens, state, heads)
    tolerance = 1e-4 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
    gap = (theirs.float().cpu() - ours).norm() if isinstance(theirs, Tensor) else torch.inf
    if not gap <= tolerance * ours.norm():
        raise ValueError(
            f"backbone: the module's blocks compute something else than a ViT's with {heads} heads "
            f"and the same weights (norms after the layers, parallel layers, another scale or "
            f"activation), which ViTDet could not reproduce"
        )
    return True


def _first_block(x: Tensor, state: Mapping[str, Tensor], heads: int) -> Tensor:
    """Attention and feed-forward layers after their norms, each added to its input."""

    def layer(name: str, x: Tensor) -> Tensor:
        return functional.linear(
            x, state[f"blocks.0.{name}.weight"], state[f"blocks.0.{name}.bias"]
        )

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"blocks.0.{name}.weight"], state[f"blocks.0.{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, _EPSILON)

    batch, count, width = x.shape
    qkv = layer("attn.qkv", norm("norm1", x)).reshape(batch, count, 3, heads, width // heads)
    mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    x = x + layer("attn.proj", mixed.transpose(1, 2).reshape(x.shape))
    return x + layer("mlp.fc2", functional.gelu(layer("mlp.fc1", norm("norm2", x))))


def _heads_of(module: nn.Module) -> object:
    return getattr(module, "num_heads", None) if "ttention" in type(module).__name__ else None


def _heads(width: int, heads: int | None) -> int:
    if heads is None:
        heads = 16 if width == 1280 else width // 64
    if heads < 1 or width % heads:
        raise ValueError(f"heads: {width} channels cannot be split into {heads}; give --heads")
    return heads
