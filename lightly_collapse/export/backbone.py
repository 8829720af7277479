"""Finding the backbone: in a module, a state dict, or a checkpoint of any format."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.export.resnet import ResNetShape, is_left_out, resnet_shape
from lightly_collapse.io.networks import Network, choose_network, find_networks, is_head
from lightly_collapse.io.weights import read_weights, weights_of

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]

# The children of torchvision's ResNet that have tensors. In nn.Sequential(*resnet.children()) their
# numbers are 0, 1, 4, 5, 6, 7 and 9: ReLU and max pooling come before the stages.
_CHILDREN = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
_FIRST_STAGE = 4


@dataclass(frozen=True)
class Backbone:
    """A ResNet found somewhere.

    Attributes:
        prefix: the part of its names before torchvision's, such as `backbone.`.
        shape: which ResNet it is.
        state: its tensors by torchvision's names, float32, on the CPU, without `left_out`.
        left_out: names, as they were given, of the tensors that are not part of `state`.
        candidates: the prefixes of all ResNets that were found.
        is_checked: whether the module was run beside a ResNet of this shape. A state dict does not
            show dilation, anti-aliased or other pooling, or another activation.
    """

    prefix: str
    shape: ResNetShape
    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    candidates: tuple[str, ...]
    is_checked: bool = False


def find_backbone(source: Source, prefix: str | None = None) -> Backbone:
    """Find the one ResNet to export.

    Args:
        source: a module, a state dict, or a checkpoint as `io.weights.read_weights` takes it.
        prefix: of the backbone's names (`backbone.`); by default the only ResNet, or the only one
            that is not named as a momentum, teacher, target, key or averaged (EMA) network.

    Returns:
        The backbone, every tensor of the source being either in it or named as left out.

    Raises:
        ValueError: if there is no ResNet or several are possible, if detectron2 has no such
            ResNet, or if a tensor of it is not finite.
        OSError: if the checkpoint cannot be read.
    """
    state = state_of(source)
    networks = _resnets(state)
    network = choose_network(networks, state, prefix, what="ResNet")
    _check_pooling(network, state)
    names = _own_names(network, networks)
    tensors = {inner: state[name] for name, inner in names.items()}
    shape = resnet_shape(tensors)
    kept = {name: _as_float32(tensor, name) for name, tensor in tensors.items() if _kept(name)}
    left_out = tuple(name for name in state if name not in names or not _kept(names[name]))
    is_checked = isinstance(source, nn.Module) and _computes_the_same(source, network, shape, kept)
    candidates = tuple(n.prefix for n in networks)
    return Backbone(network.prefix, shape, kept, left_out, candidates, is_checked)


def state_of(source: Source) -> Mapping[str, Tensor]:
    """The tensors of a module, a state dict or a checkpoint by name."""
    if isinstance(source, nn.Module):
        return dict(source.state_dict())
    if isinstance(source, Mapping):
        return weights_of(source, "state dict").state
    return read_weights(source).state


def _resnets(state: Mapping[str, Tensor]) -> list[Network]:
    """The ResNets among the tensors, best first; an error where there is none."""
    with torch.device("meta"):
        common = [n for n in ResNetShape(18).build().state_dict() if not is_left_out(n)]
    networks = [
        network
        for network in find_networks(state, common, _CHILDREN)
        if "layer1.0.conv1.weight" in network.names.values()
    ]
    if networks:
        return networks
    if any("patch_embed." in n or n.endswith(("class_token", "cls_token")) for n in state):
        raise ValueError(
            "checkpoint: a vision transformer (patch embedding, class token). A plain one with "
            "timm's or torchvision's names is exported to detectron2's form, which both trainers "
            "read; others (Swin, names of transformers) are not: load the weights into timm first"
        )
    parts = list(dict.fromkeys(name.split(".")[0] for name in state))
    raise ValueError(
        f"checkpoint: no ResNet backbone in it; its parts are {_quoted(parts)}; ResNets and plain "
        f"vision transformers can be exported"
    )


def _own_names(network: Network, networks: Sequence[Network]) -> dict[str, str]:
    """The names under the network's prefix, without its heads and networks below the prefix."""
    below = tuple(n.prefix for n in networks if len(n.prefix) > len(network.prefix))
    return {
        name: inner
        for name, inner in network.names.items()
        if not is_head(inner) and not (below and name.startswith(below))
    }


def _check_pooling(network: Network, state: Mapping[str, Tensor]) -> None:
    """Refuse a Sequential whose numbers show that there is no max pooling before the stages."""
    if len(network.numbers) < 3 or network.numbers[2] == _FIRST_STAGE:
        return
    stem = next((state[n] for n, inner in network.names.items() if inner == "conv1.weight"), None)
    kernel = "unknown" if stem is None else tuple(stem.shape)
    raise ValueError(
        f"backbone: the stages of {network.prefix or 'the Sequential'} begin at "
        f"{network.numbers[2]}, not {_FIRST_STAGE} (kernel {kernel}): the max pooling after conv1 "
        f"is missing, as in a CIFAR stem; detectron2's ResNet has no such form: pretrain with the "
        f"ImageNet stem"
    )


def _kept(name: str) -> bool:
    return not is_left_out(name)


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"backbone: {name} must hold floating-point numbers, got {tensor.dtype}")
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"backbone: {name} holds NaN or inf")
    return tensor


def _computes_the_same(
    source: nn.Module, network: Network, shape: ResNetShape, state: Mapping[str, Tensor]
) -> bool:
    """Run the module beside the ResNet it was taken for; False where it cannot be run.

    Weights alone do not show dilation, other pooling, activations or epsilons.
    """
    owner = source.get_submodule(network.prefix.rstrip("."))
    if type(owner).forward is nn.Module.forward:
        return False
    first, last = (
        map(str, (network.numbers[2], network.numbers[5]))
        if network.numbers
        else (
            "layer1",
            "layer4",
        )
    )
    stages = [owner.get_submodule(first), owner.get_submodule(last)]
    reference = shape.build().eval()
    reference.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    parameter = next(owner.parameters())
    theirs = _features(owner, stages, image.to(parameter.device, parameter.dtype))
    ours = _features(reference, [reference.layer1, reference.layer4], image)
    tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
    for name, their, our in zip(("layer1", "layer4"), theirs, ours, strict=True):
        gap = (their.float().cpu() - our).norm() if their.shape == our.shape else torch.inf
        if not gap <= tolerance * our.norm():
            raise ValueError(
                f"backbone: the module's {name} computes something else than a {shape.name} with "
                f"the same weights (another pooling, stride, dilation, activation or epsilon), "
                f"which detectron2 could not reproduce"
            )
    return True


def _features(network: nn.Module, stages: Sequence[nn.Module], image: Tensor) -> list[Tensor]:
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


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(repr(name) for name in names[:8]) or "nothing") + more
