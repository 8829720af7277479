"""Finding the backbone: in a module, a state dict, or a checkpoint of Lightning or Lightly."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.export.resnet import ResNetShape, is_left_out, resnet_shape
from lightly_collapse.io.checkpoints import read_checkpoint

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]

# nn.Sequential(*resnet.children()): conv1, bn1, relu, maxpool, then the stages, avgpool, fc.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_CHILDREN |= {"8": "fc", "9": "fc"}
_SECOND_NETWORKS = ("momentum", "teacher", "target", "ema", "key")


@dataclass(frozen=True)
class Backbone:
    """A ResNet found somewhere.

    Attributes:
        prefix: what stood before its names, such as `backbone.`.
        shape: which ResNet it is.
        state: its tensors by torchvision's names, float32, on the CPU, without `left_out`.
        left_out: names, as they were given, of the tensors that are not part of `state`.
        candidates: the prefixes of all ResNets that were there.
    """

    prefix: str
    shape: ResNetShape
    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    candidates: tuple[str, ...]


def find_backbone(source: Source, prefix: str | None = None) -> Backbone:
    """Find the one ResNet to export.

    Args:
        source: a module, a state dict, or the path of a checkpoint holding one.
        prefix: what stands before the backbone's names (`backbone.`); found by itself where there
            is one ResNet, or one that is not named as a momentum, teacher, target, EMA or key
            network.

    Returns:
        The backbone, every tensor of the source being either in it or named as left out.

    Raises:
        ValueError: if there is no ResNet or the choice is open, if the ResNet is none that
            detectron2 has, or if a tensor of it is not finite.
        OSError: if the file cannot be read.
    """
    state = _state_dict(source)
    found = _candidates(state)
    if prefix is None:
        chosen = _choose(found, state)
    else:
        chosen = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if chosen not in found:
            raise ValueError(f"prefix: no ResNet under {chosen!r}; found {_quoted(found)}")
    inside = {name: name[len(chosen) :] for name in state if name.startswith(chosen)}
    if found[chosen]:
        inside = {name: _child_name(short) for name, short in inside.items()}
    tensors = {short: state[name] for name, short in inside.items()}
    shape = resnet_shape(tensors)
    kept = {short: _as_float32(tensor, short) for short, tensor in tensors.items() if _kept(short)}
    left_out = tuple(name for name in state if name not in inside or not _kept(inside[name]))
    backbone = Backbone(chosen, shape, kept, left_out, tuple(found))
    if isinstance(source, nn.Module):
        _check_same_function(source, backbone, is_sequential=found[chosen])
    return backbone


def _state_dict(source: Source) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    if not isinstance(source, Mapping):
        source = read_checkpoint(source)
    for key in ("state_dict", "model_state_dict", "model"):
        inner = source.get(key)
        if isinstance(inner, Mapping):
            source = inner
            break
    state = {name: value for name, value in source.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(
            f"checkpoint: holds no tensors, only {_quoted([str(key) for key in source])}"
        )
    return state


def _candidates(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """The prefixes of all ResNets, and whether their names are the numbers of a Sequential."""
    found = {}
    for name in state:
        if match := re.fullmatch(r"((?:.*\.)?)layer1\.0\.conv1\.weight", name):
            found[match[1]] = False
        elif match := re.fullmatch(r"((?:.*\.)?)(\d)\.0\.conv1\.weight", name):
            stem = state.get(f"{match[1]}0.weight")
            if stem is None or stem.ndim != 4 or f"{match[1]}1.running_mean" not in state:
                continue
            if f"{match[1]}{int(match[2]) - 1}.0.conv1.weight" in state:
                continue
            if match[2] != "4":
                raise ValueError(
                    f"backbone: the stages of {match[1] or 'the Sequential'} begin at "
                    f"{match[2]}, not 4 (kernel {tuple(stem.shape)}): the max-pooling after conv1 "
                    f"is missing, as in a CIFAR stem; detectron2's ResNet has no such form"
                )
            found[match[1]] = True
    return found


def _choose(found: Mapping[str, bool], state: Mapping[str, Tensor]) -> str:
    if not found:
        names = list(dict.fromkeys(name.split(".")[0] for name in state))
        if any("patch_embed." in n or n.endswith(("class_token", "cls_token")) for n in state):
            raise ValueError(
                "checkpoint: a vision transformer (patch embedding, class token); only ResNets "
                "can be exported, since detectron2's ResNet has no place for its weights"
            )
        raise ValueError(f"checkpoint: no ResNet backbone in it; its parts are {_quoted(names)}")
    if len(found) == 1:
        return next(iter(found))
    first = [name for name in found if not any(word in name.lower() for word in _SECOND_NETWORKS)]
    if len(first) == 1:
        return first[0]
    raise ValueError(f"checkpoint: {len(found)} ResNets; choose by prefix: {_quoted(found)}")


def _child_name(name: str) -> str:
    number, _, rest = name.partition(".")
    return f"{_CHILDREN.get(number, number)}.{rest}"


def _kept(name: str) -> bool:
    return not is_left_out(name)


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"backbone: {name} must hold floating-point numbers, got {tensor.dtype}")
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"backbone: {name} holds NaN or inf")
    return tensor


def _check_same_function(source: nn.Module, backbone: Backbone, is_sequential: bool) -> None:
    """Weights alone do not tell dilation, other pooling, activations or epsilons: run both."""
    owner = source.get_submodule(backbone.prefix.rstrip("."))
    stages = [owner.get_submodule(str(4 + i) if is_sequential else f"layer{1 + i}") for i in (0, 3)]
    if type(owner).forward is nn.Module.forward:
        return
    reference = backbone.shape.build().eval()
    reference.load_state_dict(backbone.state, strict=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    parameter = next(owner.parameters())
    theirs = _features(owner, stages, image.to(parameter.device, parameter.dtype))
    ours = _features(reference, [reference.layer1, reference.layer4], image)
    tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
    for i, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        gap = (their.float().cpu() - our).norm() if their.shape == our.shape else torch.inf
        if not gap <= tolerance * our.norm():
            raise ValueError(
                f"backbone: the module's {'layer1' if i == 0 else 'layer4'} computes something "
                f"else than a {backbone.shape.name} with the same weights (another pooling, "
                f"stride, dilation, activation or epsilon), which detectron2 could not reproduce"
            )


def _features(network: nn.Module, stages: list[nn.Module], image: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    hooks = [s.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for s in stages]
    training = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was_training in training.items():
            module.training = was_training
    return outputs


def _quoted(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(repr(name) for name in names[:8]) or "nothing") + more
