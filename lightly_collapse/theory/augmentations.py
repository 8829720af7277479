"""Which random steps a transform has, and the same transform without one of them."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

Transform = Callable[[Any], Any]

# Steps that give every view the same form; leaving one out would change what a view is.
_FIXED = {
    "CenterCrop",
    "ConvertImageDtype",
    "Grayscale",
    "Identity",
    "Normalize",
    "PILToTensor",
    "Pad",
    "RGB",
    "Resize",
    "ToDtype",
    "ToImage",
    "ToPILImage",
    "ToPureTensor",
    "ToTensor",
}


def augmentation_names(transform: Transform) -> list[str]:
    """Names of the random steps of a transform, in order, each once.

    Looks through Lightly's multi-view transforms (the steps of all views together), torchvision's
    `Compose` of either version and `torch.nn.Sequential`. A step is named by its class, or its
    function's name; what `RandomApply` applies is named instead of it; a step whose probability is
    0 is no step. A second step of the same name within one view is "... (2)".

    Args:
        transform: any transform; one that is not built from these containers has no names.

    Returns:
        The names.

    Examples:
        >>> from lightly.transforms import SimCLRTransform
        >>> augmentation_names(SimCLRTransform())  # doctest: +NORMALIZE_WHITESPACE
        ['RandomResizedCrop', 'RandomHorizontalFlip', 'ColorJitter', 'RandomGrayscale',
         'GaussianBlur']
    """
    names = {name: None for view in _views(transform) for name, _, _ in _named_steps(view)}
    return list(names)


def without_augmentation(transform: Transform, name: str) -> Transform:
    """A copy of a transform without the random step of that name, in every view.

    A random crop gives way to a plain resize of the whole image (`RandomResizedCrop`) or to a
    centre crop (`RandomCrop`), so that the views keep their size.

    Args:
        transform: as for `augmentation_names`; left as it is.
        name: one of `augmentation_names(transform)`.

    Returns:
        The copy.

    Raises:
        ValueError: if there is no such step.

    Examples:
        >>> from lightly.transforms import SimCLRTransform
        >>> calmer = without_augmentation(SimCLRTransform(), "ColorJitter")
        >>> "ColorJitter" in augmentation_names(calmer)
        False
    """
    result = copy.deepcopy(transform)
    found = [
        (container, index)
        for view in _views(result)
        for step_name, container, index in _named_steps(view)
        if step_name == name
    ]
    if not found:
        raise ValueError(
            f"name must be one of {augmentation_names(transform)}, the steps found, got {name!r}"
        )
    for container, index in found:
        container[index] = _still(container[index])
    return result


def _views(transform: Any) -> list[Any]:
    """The outermost sequences of steps, each once: lists, or Sequential modules."""
    found: dict[int, Any] = {}

    def visit(part: Any) -> None:
        steps = _steps(part)
        if steps is not None:
            found.setdefault(id(steps), steps)
        elif isinstance(getattr(part, "transforms", None), list | tuple):
            for child in part.transforms:
                visit(child)
        elif hasattr(part, "transform"):
            visit(part.transform)

    visit(transform)
    return list(found.values())


def _steps(part: Any) -> Any:
    """The mutable sequence of steps of a Compose or a Sequential, or None."""
    if isinstance(part, nn.Sequential):
        return part
    if type(part).__name__ != "Compose":
        return None
    if not isinstance(part.transforms, list):
        part.transforms = list(part.transforms)
    return part.transforms


def _named_steps(steps: Any) -> list[tuple[str, Any, int]]:
    seen: dict[str, int] = {}
    result = []
    for name, container, index in _random_steps(steps):
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name} ({seen[name]})"
        result.append((label, container, index))
    return result


def _random_steps(steps: Any) -> Iterator[tuple[str, Any, int]]:
    for index, step in enumerate(steps):
        inner = _steps(step)
        if inner is not None:
            yield from _random_steps(inner)
        elif type(step).__name__ not in _FIXED and _probability(step) > 0:
            yield _name(step), steps, index


def _probability(step: Any) -> float:
    for attribute in ("p", "prob"):
        value = getattr(step, attribute, None)
        if isinstance(value, int | float):
            return value
    inner = getattr(step, "transform", None)
    return 1.0 if inner is None or inner is step else _probability(inner)


def _name(step: Any) -> str:
    kind = type(step).__name__
    if kind in ("RandomApply", "RandomOrder", "RandomChoice"):
        return " + ".join(_name(inner) for inner in step.transforms)
    if kind == "Lambda":
        return _name(getattr(step, "lambd", step)) if hasattr(step, "lambd") else kind
    if kind in ("function", "builtin_function_or_method"):
        return str(step.__name__)
    return kind


def _still(step: Any) -> Any:
    """What stands in for a step left out."""
    kind = type(step).__name__
    if kind not in ("RandomResizedCrop", "RandomCrop"):
        return nn.Identity()
    if type(step).__module__.startswith("torchvision.transforms.v2"):
        from torchvision.transforms import v2 as transforms  # noqa: PLC0415
    else:
        from torchvision import transforms  # noqa: PLC0415
    if kind == "RandomCrop":
        return transforms.CenterCrop(step.size)
    return transforms.Resize(list(step.size), interpolation=step.interpolation)
