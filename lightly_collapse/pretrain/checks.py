"""What of a configuration of `pretrain` can be refused before Lightning is imported."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from lightly_collapse._arguments import Seed, Workers, check, check_output
from lightly_collapse._names import check_arch, check_choice, read_names
from lightly_collapse.pretrain.configs import LIST_CONFIGS, merge, split_config
from lightly_collapse.pretrain.renamed import check_renamed

METHODS = read_names("lightly_collapse.pretrain.methods", "__all__")
"""The methods by their names on the command line."""

DATA = read_names("lightly_collapse.pretrain.data", "__all__")
"""The data modules by their names on the command line."""

OPTIONS = (
    "config",
    "model",
    "data",
    "trainer",
    "optimizer",
    "lr_scheduler",
    "output",
    "ckpt_path",
    "seed_everything",
)
"""What an option of `pretrain` begins with, up to the first dot."""

_INFORMATION = ("-h", "--help", "--print_config", LIST_CONFIGS)
# Settings of the trainer and the data by the least value that they can have.
_AT_LEAST = {
    "trainer.max_epochs": -1,
    "trainer.min_epochs": 0,
    "trainer.max_steps": -1,
    "trainer.min_steps": 0,
    "trainer.num_nodes": 1,
    "trainer.num_sanity_val_steps": -1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.reload_dataloaders_every_n_epochs": 0,
    "trainer.gradient_clip_val": 0,
    "data.batch_size": 1,
    "data.train_images": 1,
    "data.bank_images": 1,
    "data.image_size": 8,
    "model.backbone.width": 1,
    "model.backbone.image_size": 1,
    "model.backbone.patch_size": 1,
}
_UNSET = object()
_MOST_EPOCHS = 10**6
# Of batches: a whole number counts them, a fraction is a share. Nothing is trained with 0.
_SHARES = ("limit_train_batches", "limit_val_batches", "val_check_interval", "overfit_batches")
_NEVER_ZERO = ("limit_train_batches", "val_check_interval")
_PROFILERS = ("simple", "advanced", "pytorch", "xla")
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu", "hpu")
_FOLDERS = ("ImageFolder", "SmallImageFolder", "LightlyFolder")


def check_words(words: Sequence[str]) -> None:
    """Refuse what is wrong in a command line of `pretrain`, as far as plain values tell.

    Args:
        words: after `lightly-collapse pretrain`.

    Raises:
        ValueError: naming the setting, its value and what is needed.
        OSError: if a file is missing or the output folder cannot be written.
    """
    if any(word.partition("=")[0] in _INFORMATION for word in words):
        return
    config, rest = split_config(words)
    for word in rest:
        first = re.match(r"--([a-zA-Z_][\w-]*)", word)
        # The parser takes the beginning of an option's name for the name.
        if first and not any(option.startswith(first[1]) for option in OPTIONS):
            check_choice("option", f"--{first[1]}", [f"--{option}" for option in OPTIONS])
    config = merge(config, plain_settings(rest))
    check_config(config)
    if not config.get("model"):
        raise ValueError(f"give --model, one of {', '.join(METHODS)}, or a --config that has it")
    check_output("output", config.get("output", "pretrain-output") or "")
    _check_checkpoint(config)


def keep_integers(parsed: Any, given: Mapping[str, Any]) -> None:
    """Undo, in place, that a parser made 1.0 of a given 1: a batch is not all batches.

    A setting that may be a number or a share has the types int and float, of which the parser takes
    the first that fits, in an order that depends on what else the program has imported.

    Args:
        parsed: a mapping or namespace of settings.
        given: the same settings as they came.
    """
    for name, value in given.items():
        if type(value) is int and name in parsed and isinstance(parsed[name], float):
            parsed[name] = value


def plain_settings(words: Sequence[str]) -> dict[str, Any]:
    """The configuration in `--a.b value` and `--a.b=value`; what is neither is left to the parser.

    `--model.x` stands for the argument x of the method, and `--model` for its name.
    """
    config: dict[str, Any] = {}
    for i, word in enumerate(words):
        if not word.startswith("--"):
            continue
        key, equals, text = word.removeprefix("--").partition("=")
        following = words[i + 1] if i + 1 < len(words) else None
        if not equals and (following is None or re.match(r"--[a-z]", following)):
            continue
        try:
            value = yaml.safe_load(text if equals else str(following))
        except yaml.YAMLError:
            continue
        names = key.split(".")
        if names[0] in ("model", "data"):
            if len(names) == 1 and isinstance(value, str):
                names.append("class_path")
            elif len(names) > 1 and names[1] not in ("class_path", "init_args"):
                names.insert(1, "init_args")
        for name in reversed(names):
            value = {name: value}
        config = merge(config, value)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what is wrong in a configuration of `pretrain`, as far as plain values tell.

    Args:
        config: as in a configuration file, before it is parsed, or parsed.

    Raises:
        ValueError: naming the setting, its value and what is needed.
    """
    check_renamed(config)
    for part, known in (("model", METHODS), ("data", DATA)):
        chosen = _class_name(config, part)
        # A dotted path names a class of the user's own.
        if isinstance(chosen, str) and "." not in chosen:
            check_choice(part, chosen, known)
    seed = config.get("seed_everything")
    if isinstance(seed, (int, float)) and not isinstance(seed, bool):
        check("seed_everything", Seed, seed)
    for path, least in _AT_LEAST.items():
        value = _value(config, path)
        if _is_number(value) and not least <= value < math.inf:
            raise ValueError(f"{path} must be at least {least}, got {value}")
    workers = _value(config, "data.num_workers")
    if isinstance(workers, int):
        check("data.num_workers", Workers, workers)
    _check_trainer(_mapping(config.get("trainer")))
    name = _value(config, "model.backbone.name")
    if isinstance(name, str):
        check_arch("model.backbone.name", name)
    root = _value(config, "data.root", _UNSET)
    kind = str(_class_name(config, "data")).rpartition(".")[2]
    if kind in _FOLDERS and root is not _UNSET and not (root and Path(str(root)).is_dir()):
        raise ValueError(f"data.root must be a folder of images, got {root}")


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for name in ("max_epochs", "max_steps"):
        value = trainer.get(name)
        if value == 0 and _is_number(value):
            raise ValueError(f"trainer.{name} must be at least 1, or -1 for no limit, got 0")
    epochs = trainer.get("max_epochs")
    if _is_number(epochs) and epochs > _MOST_EPOCHS:
        raise ValueError(f"trainer.max_epochs must be at most {_MOST_EPOCHS}, got {epochs}")
    for name in _SHARES:
        value = trainer.get(name)
        if not _is_number(value):
            continue
        if name in _NEVER_ZERO and not value > 0:
            raise ValueError(f"trainer.{name} must be positive, got {value}")
        if not 0 <= value < math.inf or (isinstance(value, float) and value > 1):
            raise ValueError(
                f"trainer.{name} must be a number of batches or a share between 0 and 1, "
                f"got {value}"
            )
    devices = trainer.get("devices")
    if devices in (0, "0", "", [], -2) or (
        str(devices) == "-1" and trainer.get("accelerator") == "cpu"
    ):
        raise ValueError(f"trainer.devices must name at least one device, got {devices}")
    for name, known in (("profiler", _PROFILERS), ("accelerator", _ACCELERATORS)):
        value = trainer.get(name)
        if isinstance(value, str) and "." not in value:
            check_choice(f"trainer.{name}", value, known)


def _check_checkpoint(config: Mapping[str, Any]) -> None:
    path = config.get("ckpt_path")
    if isinstance(path, str):
        place = Path(config.get("output") or "pretrain-output") / "last.ckpt"
        place = place if path == "last" else Path(path)
        if not place.is_file():
            kind = "is a folder, not a file" if place.is_dir() else "does not exist"
            raise FileNotFoundError(f"checkpoint {place} {kind}")


def _class_name(config: Mapping[str, Any], part: str) -> Any:
    chosen = config.get(part)
    return chosen.get("class_path") if isinstance(chosen, Mapping) else chosen


def _value(config: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a path, `model.x` and `data.x` being arguments of their classes."""
    first, *names = path.split(".")
    node = _mapping(config.get(first))
    if first in ("model", "data"):
        node = _mapping(node.get("init_args"))
    for name in names[:-1]:
        node = _mapping(node.get(name))
    return node.get(names[-1], default)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return vars(value) if hasattr(value, "__dict__") else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
