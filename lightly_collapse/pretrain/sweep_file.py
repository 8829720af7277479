"""The file of a sweep: which cells it has, and the KEY=VALUE settings laid over them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightly_collapse.pretrain.configs import find_config, load_config, merge


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        method: its name in the sweep file.
        regularizer: its name there; empty where the sweep has none.
        seed: of everything random.
        config: the configuration of `pretrain`, but for the output folder.
        resources: `cpus` and `gpus` of a worker on a Ray cluster, where the sweep file says them.
    """

    method: str
    regularizer: str
    seed: int
    config: dict[str, Any]
    resources: dict[str, float] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Method and regularizer."""
        return f"{self.method} + {self.regularizer}" if self.regularizer else self.method

    @property
    def folder(self) -> str:
        """The cell's folder inside the sweep's."""
        words = [self.method, self.regularizer, f"seed{self.seed}"]
        return "-".join(word.replace(" ", "_") for word in words if word)


def read_sweep(path: str | os.PathLike[str], seeds: Sequence[int] | None = None) -> list[Cell]:
    """The cells of a sweep file.

    The file holds `seeds`; `bases`, configuration files of every cell, relative to itself;
    `settings`, laid over them; `methods` and `regularizers`, from a name to `bases` and `settings`
    of its own; and `cells`, a list of `methods` with the `regularizers` they are run with. Without
    `cells` every method is run with every regularizer. The regularizer `none` is none. `resources`,
    of the file or of a method, are the `cpus` and `gpus` that a cell takes on a Ray cluster.

    Args:
        path: the file.
        seeds: instead of the file's.

    Returns:
        The cells, seed by seed, so that a sweep that is broken off has whole seeds.

    Raises:
        ValueError: if something is missing or unknown, naming it.
        OSError: if a file cannot be read.
    """
    path = find_config(path, "sweep")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"sweep {path} must be YAML: {error}") from error
    known = {"seeds", "bases", "settings", "methods", "regularizers", "cells", "resources"}
    if not isinstance(content, dict) or not content.get("methods"):
        raise ValueError(f"sweep {path} must be a mapping with `methods`")
    if unknown := set(content) - known:
        raise ValueError(f"sweep {path}: unknown {', '.join(sorted(unknown))}")
    methods = content["methods"]
    regularizers = {"none": {}, **(content.get("regularizers") or {})}
    groups = content.get("cells") or [{"methods": list(methods), "regularizers": [*regularizers]}]
    shares = _resources(path, content)
    resources = {name: {**shares, **_resources(path, m or {})} for name, m in methods.items()}
    chosen = content.get("seeds", [0]) if seeds is None else seeds
    if not chosen:
        raise ValueError(f"sweep {path} must have at least one seed")
    cells = []
    for seed in chosen:
        for group in groups:
            for method in group["methods"]:
                for regularizer in group.get("regularizers", ["none"]):
                    for kind, name, names in (
                        ("method", method, methods),
                        ("regularizer", regularizer, regularizers),
                    ):
                        if name not in names:
                            raise ValueError(
                                f"sweep {path}: {kind} {name!r} is none of {', '.join(names)}"
                            )
                    config: dict[str, Any] = {}
                    for part in (content, methods[method], regularizers[regularizer]):
                        config = merge(config, _part(path, part))
                    config["seed_everything"] = seed
                    shown = "" if regularizer == "none" else regularizer
                    cells.append(Cell(method, shown, seed, config, resources[method]))
    return cells


def chosen_cells(cells: list[Cell], only: Sequence[str] | None) -> list[Cell]:
    """The cells of these rows of the table, or all; ValueError where there is no such row."""
    if only is None:
        return cells
    known = list(dict.fromkeys(cell.variant for cell in cells))
    for variant in only:
        if variant not in known:
            raise ValueError(f"only must name some of {', '.join(known)}, got {variant!r}")
    return [cell for cell in cells if cell.variant in only]


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that KEY=VALUE words say; `data.root` is `data.init_args.root`."""
    config: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not key or not equals:
            raise ValueError(f"--set must be KEY=VALUE, got {override!r}")
        names = key.split(".")
        if names[0] in ("model", "data") and names[1:2] not in ([], ["class_path"], ["init_args"]):
            names.insert(1, "init_args")
        try:
            setting = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key}: the value must be YAML, got {value!r}") from error
        for name in reversed(names):
            setting = {name: setting}
        config = merge(config, setting)
    return config


def _part(path: Path, part: Mapping[str, Any] | None) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for base in (part or {}).get("bases") or []:
        config = merge(config, load_config(path.parent / base))
    return merge(config, (part or {}).get("settings") or {})


def _resources(path: Path, part: Mapping[str, Any]) -> dict[str, float]:
    shares = part.get("resources") or {}
    known = isinstance(shares, dict) and set(shares) <= {"cpus", "gpus"}
    if not known or not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and 0 <= n < math.inf
        for n in shares.values()
    ):
        raise ValueError(
            f"sweep {path}: resources must be `cpus` and `gpus`, numbers from 0, got {shares!r}"
        )
    return shares
