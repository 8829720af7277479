"""Backbones by name, and the weights of checkpoints of several formats put into them."""

import os
import pickle
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

_SECOND_NETWORKS = ("momentum", "teacher", "target", "ema", "key")
_INNER = ("state_dict", "model_state_dict", "model", "student", "teacher", "network")


# Unpickling damaged bytes can fail at any of its steps; a fuzz test keeps this list complete.
CORRUPT = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    RuntimeError,
)


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint without running anything that is in it.

    Raises:
        ValueError: if the file is corrupt, or holds objects other than tensors and plain values.
        OSError: if it cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"checkpoint {path}: not a file of tensors and plain values that can be loaded "
                f"with weights_only=True ({reason(error)}); save the state dict alone and export it"
            ) from error
        except CORRUPT as error:
            raise ValueError(
                f"checkpoint {path}: corrupt or no checkpoint ({reason(error)})"
            ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"checkpoint {path}: holds a {type(loaded).__name__}, no state dict")
    return loaded


@dataclass(frozen=True)
class Match:
    """How a checkpoint met a model.

    Attributes:
        prefix: what stood before the model's names, such as `backbone.`.
        loaded: number of the model's tensors that were loaded.
        missing: names of the model's tensors that the checkpoint lacks; they keep random values.
        mismatched: names that both have in different shapes; they keep random values as well.
        unused: names of the checkpoint's tensors that found no place.
    """

    prefix: str
    loaded: int
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def create_backbone(arch: str) -> nn.Module:
    """A torchvision or timm model with random weights and without its classification layer.

    Args:
        arch: `resnet50`, or any name of `torchvision.models.list_models()` or
            `timm.list_models()`; `timm/<name>` asks for timm's where both have one.

    Returns:
        The model; it maps images to representations.

    Raises:
        ValueError: if the name is unknown, or of timm where that is not installed.

    Examples:
        >>> create_backbone("resnet18")(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 512])
    """
    name = arch.removeprefix("timm/")
    if name == arch and name in torchvision.models.list_models(module=torchvision.models):
        model: nn.Module = torchvision.models.get_model(name, weights=None)
        _remove_classifier(model)
        return model
    if find_spec("timm") is None:
        raise ValueError(
            f"arch must be a model of torchvision, such as resnet50, got {arch!r}; for timm's "
            "models: pip install 'lightly-collapse[timm]'"
        )
    import timm  # noqa: PLC0415

    if not timm.is_model(name):
        raise ValueError(f"arch must be a model of torchvision or timm, got {arch!r}")
    created: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return created


def _remove_classifier(model: nn.Module) -> None:
    """The last linear layer of a classification model becomes the identity."""
    last = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not last or not last[-1].startswith(("fc", "classifier", "head")):
        return
    parent, _, child = last[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> Match:
    """Put the weights of a checkpoint into a model, whatever stands before their names.

    Understood are state dicts by themselves or inside a checkpoint (Lightning's and others'), names
    under any prefix (`backbone.`, `module.`, `student.backbone.`, ...; an online network goes
    before a momentum or teacher network), and Lightly's
    `nn.Sequential(*list(resnet.children())[:-1])`, whose children are numbered. A 3x3 first
    convolution makes a torchvision ResNet one for small images, without max pooling.

    Args:
        model: takes the weights, in place.
        path: the file; it is read with `weights_only=True`.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: if the file is no checkpoint, or no name and shape in it fits the model.
        OSError: if it cannot be read.
    """
    state = _read(path)
    names, prefix = _names_in_model(model, state)
    renamed = {inner: state[name] for name, inner in names.items()}
    _adapt_stem(model, renamed)
    own = model.state_dict()
    fitting = {n: v for n, v in renamed.items() if n in own and v.shape == own[n].shape}
    if not any(v.ndim > 1 for v in fitting.values()):
        raise ValueError(
            f"checkpoint {path} matches no weight of the model: it has {_some(list(state))}; the "
            f"model has {_some(list(own))}"
        )
    model.load_state_dict(fitting, strict=False)
    return Match(
        prefix=prefix,
        loaded=len(fitting),
        missing=[n for n in own if n not in renamed and not n.endswith("num_batches_tracked")],
        mismatched=[n for n in renamed if n in own and n not in fitting],
        unused=[n for n in state if names.get(n) not in own],
    )


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"checkpoint {path} cannot be read as tensors and plain values: {reason}"
        ) from error
    while isinstance(loaded, Mapping):
        tensors = {str(n): v for n, v in loaded.items() if isinstance(v, Tensor)}
        inner = next((loaded[k] for k in _INNER if isinstance(loaded.get(k), Mapping)), None)
        if tensors or inner is None:
            if tensors:
                return tensors
            break
        loaded = inner
    raise ValueError(f"checkpoint {path} holds no state dict")


def _names_in_model(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """Under the prefix that fits most names: the model's name of each, and the prefix."""
    own = model.state_dict()
    numbered = {str(i): name for i, (name, _) in enumerate(model.named_children())}
    counts: Counter[tuple[str, bool]] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            prefix = "".join(f"{p}." for p in parts[:i])
            for by_number in (False, True):
                counts[prefix, by_number] += _inner(parts[i:], numbered, by_number) in own

    def preference(candidate: tuple[str, bool]) -> tuple[int, bool, bool]:
        prefix, by_number = candidate
        second = any(word in prefix.lower() for word in _SECOND_NETWORKS)
        return counts[candidate], not second, not by_number

    best = max(counts, key=preference)
    prefix, by_number = best
    return {
        name: _inner(name[len(prefix) :].split("."), numbered, by_number)
        for name in state
        if name.startswith(prefix)
    }, prefix


def _inner(parts: list[str], numbered: Mapping[str, str], by_number: bool) -> str:
    first = numbered.get(parts[0], parts[0]) if by_number else parts[0]
    return ".".join([first, *parts[1:]])


def _adapt_stem(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    if not isinstance(model, torchvision.models.ResNet) or "conv1.weight" not in state:
        return
    filters, _, *kernel = state["conv1.weight"].shape
    if kernel == [3, 3]:
        model.conv1 = nn.Conv2d(3, filters, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
