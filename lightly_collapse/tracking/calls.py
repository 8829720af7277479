"""Which modules inside a layer were called, where the layer's own forward was not."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightly_collapse._hooks import Hook

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _BatchNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList)
_MOST_NAMED = 6


class CallRecorder:
    """Records calls of the modules inside layers until a layer is called itself.

    Encoders are often used by `encode()` or `forward_features()`, which call the parts of a module
    and not the module, whose hooks then never run. Only what is called while rows are taken can
    give some: a decoder that is called in training alone is none of a validation loop's layers.

    Args:
        layers: modules by name.
        counts: asked at every call whether it is a forward pass of its own.
        taking: asked at every call that counts whether rows are taken.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> calls = CallRecorder({"net": net})
        >>> _ = net[1](net[0](torch.zeros(1, 2)))
        >>> print(calls.explain("net"))
        forward of net was never called; inside it these were: net.0, net.1. Use layers=("net.1",)
        >>> calls.remove()
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        counts: Callable[[], bool] = lambda: True,
        taking: Callable[[], bool] = lambda: True,
    ) -> None:
        self._layers = dict(layers)
        self._counts = counts
        self._taking = taking
        self._called: dict[str, list[str]] = {name: [] for name in layers}
        self._handles: dict[str, list[Any]] = {name: [] for name in layers}
        # What ran while no rows were taken: modules inside by layer, "" for the layer itself.
        self._otherwise: dict[str, set[str]] = {name: set() for name in layers}
        for name, layer in layers.items():
            for inner, module in layer.named_modules():
                hook = Hook(self._hook(name, inner))
                self._handles[name].append(module.register_forward_hook(hook))

    def _hook(self, layer: str, inner: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            # Under torch.compile nothing is recorded: it would be traced into the graph.
            if torch.compiler.is_compiling() or not self._counts():
                return
            if not self._taking():
                self._otherwise[layer].add(inner)
            elif not inner:
                self._remove(layer)
            elif inner not in self._called[layer]:
                self._called[layer].append(inner)

        return hook

    def explain(self, layer: str) -> str:
        """Why there is nothing of a layer, and which one to take instead.

        Args:
            layer: its name.

        Returns:
            A sentence or two.
        """
        called, otherwise = self._called[layer], self._otherwise[layer]
        if not called and otherwise:
            what = f"forward of {layer}" if "" in otherwise else f"a module inside {layer}"
            return (
                f"{what} was called, but not while its rows were taken: a monitor takes them in "
                "validation, where there is a validation loop"
            )
        if not called:
            compiled = any("_orig_mod" in n for n, _ in self._layers[layer].named_modules())
            return f"forward of {layer} was never called, nor that of any module inside it" + (
                ": it was compiled before it was hooked" if compiled else ""
            )
        never = "not called while its rows were taken" if "" in otherwise else "never called"
        outermost = [n for n in called if not any(n.startswith(f"{o}.") for o in called)]
        shown = ", ".join(_join(layer, n) for n in outermost[:_MOST_NAMED])
        more = f" and {len(outermost) - _MOST_NAMED} more" if len(outermost) > _MOST_NAMED else ""
        return (
            f"forward of {layer} was {never}; inside it these were: {shown}{more}. "
            f'Use layers=("{_join(layer, self._offer(layer, called))}",)'
        )

    def _offer(self, layer: str, called: list[str]) -> str:
        """The end of the largest part, or the norm that follows it.

        Of several parts, such as patch embedding, blocks, an encoder and a head, the one with most
        parameters counts, and a single layer, such as a stem or a head, only where there is nothing
        else; of the blocks of a sequence the last. Of a student and its teacher, the student.
        """
        module = self._layers[layer]
        outermost = [n for n in called if not any(n.startswith(f"{o}.") for o in called)]
        outermost = [n for n in outermost if not _is_frozen(module.get_submodule(n))] or outermost
        parts: dict[str, list[str]] = {}
        for name in outermost:
            parent = name.rpartition(".")[0]
            in_sequence = isinstance(module.get_submodule(parent), _CONTAINERS)
            parts.setdefault(parent if in_sequence else name, []).append(name)

        def rank(part: str) -> tuple[bool, int]:
            modules = [module.get_submodule(n) for n in parts[part]]
            has_layers = len(modules) > 1 or any(True for _ in modules[0].children())
            return has_layers, sum(p.numel() for m in modules for p in m.parameters())

        end = parts[max(parts, key=rank)][-1]
        following = outermost[outermost.index(end) + 1 :]
        norms = [n for n in following if isinstance(module.get_submodule(n), _NORMS)]
        return norms[0] if norms else end

    def _remove(self, layer: str) -> None:
        for handle in self._handles[layer]:
            handle.remove()
        self._handles[layer].clear()

    def remove(self) -> None:
        """Remove all hooks."""
        for layer in self._handles:
            self._remove(layer)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _join(layer: str, inner: str) -> str:
    return f"{layer}.{inner}" if layer else inner
