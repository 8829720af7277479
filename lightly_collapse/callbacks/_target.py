"""The module a callback is pointed at, and the regularizer of its weights."""

from typing import Any

from torch import nn

from lightly_collapse.loss import FrozenWeightsError, OrthogonalityRegularizer
from lightly_collapse.metrics.feature_hooks import plain_name


def find_target(module: nn.Module, target: str) -> nn.Module:
    """The submodule of that dotted name; the module itself for the empty name.

    The `_orig_mod.` that `torch.compile` puts into names may be left out, and of a compiled module
    the module within is returned.

    Raises:
        ValueError: if there is none; the message lists what there is.

    Examples:
        >>> find_target(nn.ModuleDict({"backbone": nn.Linear(2, 2)}), "backbone")
        Linear(in_features=2, out_features=2, bias=True)
    """
    # Of the modules with one plain name the last is the innermost.
    found: dict[str, nn.Module] = {plain_name(name): m for name, m in module.named_modules()}
    if plain_name(target) in found:
        return found[plain_name(target)]
    # What lies beside the deepest part that exists is what was probably meant.
    parent, _, _ = target.rpartition(".")
    while parent and parent not in found:
        parent, _, _ = parent.rpartition(".")
    names = [f"{parent}.{name}" if parent else name for name, _ in found[parent].named_children()]
    raise ValueError(
        f"target {target!r} is no module of {type(module).__name__}; "
        + (f"there are: {', '.join(names)}" if names else f"{parent or 'it'} has no submodules")
    )


def make_regularizer(module: nn.Module, **settings: Any) -> OrthogonalityRegularizer | None:
    """An `OrthogonalityRegularizer`, or None while all weights that it would act on are frozen.

    Raises:
        ValueError: as `OrthogonalityRegularizer` for any other reason.

    Examples:
        >>> make_regularizer(nn.Linear(2, 2).requires_grad_(False)) is None
        True
    """
    try:
        return OrthogonalityRegularizer(module, **settings)
    except FrozenWeightsError:
        return None


def frozen_message(root: nn.Module, target: str) -> str:
    """What to say of a target whose weights are frozen; it names what is trainable instead."""
    top = target.partition(".")[0]
    siblings = [
        name
        for name, child in root.named_children()
        if name != top and any(p.requires_grad and p.ndim > 1 for p in child.parameters())
    ]
    return (
        f"all weights of target {target!r} are frozen: nothing is regularized until they thaw"
        + (f"; trainable are: {', '.join(siblings)}" if siblings else "")
    )
