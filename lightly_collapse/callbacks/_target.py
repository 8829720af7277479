"""The module a callback is pointed at."""

from torch import nn


def find_target(module: nn.Module, target: str) -> nn.Module:
    """The submodule of that dotted name; the module itself for the empty name.

    Raises:
        ValueError: if there is none; the message lists what there is.

    Examples:
        >>> find_target(nn.ModuleDict({"backbone": nn.Linear(2, 2)}), "backbone")
        Linear(in_features=2, out_features=2, bias=True)
    """
    found: dict[str, nn.Module] = dict(module.named_modules())
    if target in found:
        return found[target]
    # What lies beside the deepest part that exists is what was probably meant.
    parent, _, _ = target.rpartition(".")
    while parent and parent not in found:
        parent, _, _ = parent.rpartition(".")
    names = [f"{parent}.{name}" if parent else name for name, _ in found[parent].named_children()]
    raise ValueError(
        f"target {target!r} is no module of {type(module).__name__}; "
        + (f"there are: {', '.join(names)}" if names else f"{parent or 'it'} has no submodules")
    )
