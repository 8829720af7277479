"""Names that a configuration of an earlier version has, and what they are called now."""

from collections.abc import Iterator, Mapping
from typing import Any

_VERSION = "0.2.0"
_SETTINGS = {
    "model.init_args.optimizer.final_share": "model.init_args.optimizer.min_lr_factor",
    "model.init_args.views": "data.init_args.views",
}
# Arguments of classes, wherever these stand.
_ARGUMENTS = {("CollapseMonitor", "positions"): "tokens"}
_CLASSES = {
    "lightly_collapse.pretrain.method.": "lightly_collapse.pretrain.methods.base.",
    "lightly_collapse.pretrain.loading.": "lightly_collapse.pretrain.data.base.",
    "lightly_collapse.pretrain.augment.": "lightly_collapse.pretrain.data.augment.",
    "lightly_collapse.pretrain.checkpoint.WholeCheckpoints": (
        "lightly_collapse.pretrain.checkpoint.AtomicCheckpointIO"
    ),
}


def check_renamed(config: Mapping[str, Any]) -> None:
    """Refuse names of an earlier version.

    Args:
        config: as in a configuration file of `pretrain`.

    Raises:
        ValueError: naming what came and what it is called now.

    Examples:
        >>> check_renamed({"model": {"init_args": {"optimizer": {"final_share": 0.0}}}})
        Traceback (most recent call last):
        ValueError: model.init_args.optimizer.final_share is called ...min_lr_factor since 0.2.0...
    """
    for path, now in _SETTINGS.items():
        if _has(config, path.split(".")):
            raise ValueError(_message(path, now))
    for place, node in _mappings(config, "", set()):
        name, arguments = node.get("class_path"), node.get("init_args")
        if not isinstance(name, str):
            continue
        for before, now in _CLASSES.items():
            if name.startswith(before):
                raise ValueError(
                    _message(f"{place}.class_path {name}", now + name.removeprefix(before))
                )
        for (kind, argument), now in _ARGUMENTS.items():
            if name.rpartition(".")[2] == kind and argument in (arguments or ()):
                raise ValueError(_message(f"{place}.init_args.{argument}", now))


def _message(before: str, now: str) -> str:
    return f"{before} is called {now} since {_VERSION}: the configuration is of an earlier version"


def _has(node: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return True


def _mappings(node: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings in a configuration, each once (YAML can repeat one), and where they stand."""
    if not isinstance(node, (Mapping, list)) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, Mapping):
        yield place, node
        for name, item in node.items():
            yield from _mappings(item, f"{place}.{name}" if place else str(name), seen)
    else:
        for i, item in enumerate(node):
            yield from _mappings(item, f"{place}[{i}]", seen)
