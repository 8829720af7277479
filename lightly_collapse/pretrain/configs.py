"""Configuration files that stand on other ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


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
        ValueError: if a file is no YAML mapping or stands on itself.
        OSError: if one cannot be read.
    """
    return _load(Path(path), ())


def _load(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"config {path} stands on itself through its bases")
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
        over: what counts where both speak.

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
    """Take the configuration files out of a command's words.

    Args:
        arguments: the words; `--config FILE`, `--config=FILE` or `-c FILE`, any number of times.

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
            raise ValueError("--config needs the name of a YAML file")
        config = merge(config, load_config(path))
    return config, rest
