"""Configuration files: found by name, read over their bases, laid over one another."""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

LIST_CONFIGS = "--list-configs"
"""The option that prints the names of the shipped files."""

# In a wheel the files are the package's own; in a checkout they lie beside the package.
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = next(
    (p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir()), None
)


def list_configs(kind: str) -> list[str]:
    """The names of the shipped files of one kind.

    Args:
        kind: `pretrain` or `sweep`.

    Returns:
        The names without `.yaml`, in order; those of parts hold their folder, as `method/byol`.

    Examples:
        >>> "digits-resnet18-simclr" in list_configs("pretrain")
        True
    """
    if _SHIPPED is None:
        return []
    folder = _SHIPPED / kind
    names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted((name.as_posix() for name in names), key=lambda name: (name.count("/"), name))


def find_config(name: str | os.PathLike[str], kind: str = "pretrain") -> Path:
    """Find a configuration file: a path, or the name of a shipped one.

    Args:
        name: a file, or a name of `list_configs` with or without `.yaml`.
        kind: `pretrain` or `sweep`.

    Returns:
        The file.

    Raises:
        ValueError: if there is neither, with the names nearest to it.

    Examples:
        >>> find_config("digits-resnet18-simclr").name
        'digits-resnet18-simclr.yaml'
    """
    path = Path(name)
    if path.is_file():
        return path
    known = list_configs(kind)
    wanted = path.as_posix().removesuffix(".yaml")
    if _SHIPPED is not None and wanted in known:
        return _SHIPPED / kind / f"{wanted}.yaml"
    near = get_close_matches(wanted, known, n=3, cutoff=0.4)
    raise ValueError(
        f"config {name} is neither a file nor the name of a shipped configuration"
        + (f"; near it are {', '.join(near)}" if near else "")
        + f"; {LIST_CONFIGS} prints all names"
    )


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file over its bases.

    A file may name further files, relative to itself, under `bases`; they are read first, in
    order, each over the ones before, and the file itself over all of them. Mappings are merged key
    by key; anything else is replaced.

    Args:
        path: the file.

    Returns:
        The merged configuration.

    Raises:
        ValueError: if a file is no YAML mapping, or is among its own bases.
        OSError: if one cannot be read.
    """
    return _load(Path(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"config {path} is among its own bases")
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path} must be YAML: {error}") from error
    if not isinstance(own, dict):
        raise ValueError(f"config {path} must be a YAML mapping, got {type(own).__name__}")
    bases = own.pop("bases", None) or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"config {path}: bases must be a list of file names")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _load(path.parent / base, (*above, path.resolve())))
    return merge(merged, own)


def merge(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another.

    Args:
        below: what is kept where `over` says nothing.
        over: what replaces it.

    Returns:
        The merged configuration.

    Examples:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
        {'a': {'b': 1, 'c': 3}}
    """
    merged = dict(below)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def split_config(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Separate the configuration files from a command's other words.

    Args:
        arguments: the words; `--config FILE`, `--config=FILE` or `-c FILE`, any number of times, a
            file as `find_config` finds it.

    Returns:
        All files merged in order, and the other words.

    Raises:
        ValueError: if `--config` comes last, and as `load_config`.
        OSError: as `load_config`.
    """
    config: dict[str, Any] = {}
    rest = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--config", "-c"):
            rest.append(word)
            continue
        path = value if equals else next(words, None)
        if not path or path.startswith("--"):
            raise ValueError("--config needs a YAML file or the name of a shipped one")
        config = merge(config, load_config(find_config(path)))
    return config, rest
