"""The `pretrain` command: LightningCLI with atomic checkpoints, exact resuming, plain errors."""

import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from typing_extensions import override

from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.locks import hold_folder
from lightly_collapse.pretrain import data, methods  # noqa: F401  found by their names
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO, check_checkpoint
from lightly_collapse.pretrain.checks import (
    check_config,
    check_words,
    keep_integers,
    plain_settings,
)
from lightly_collapse.pretrain.configs import LIST_CONFIGS, list_configs, merge, split_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.methods.base import DivergedError, Method

DIVERGED = "diverged.txt"
"""File of an output folder that says why a training ended whose loss was no longer finite."""


class _PretrainCLI(LightningCLI):
    """The parser: `--model`, `--data`, `--trainer`, `--output` and `--ckpt_path`."""

    def __init__(self, arguments: list[str] | dict[str, Any], trainer: Mapping[str, Any]) -> None:
        self._given = trainer
        super().__init__(
            Method,
            PretrainData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"max_epochs": 100, "num_sanity_val_steps": 0},
            parser_kwargs={"prog": "lightly-collapse pretrain", "exit_on_error": False},
            args=arguments,
            run=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output",
            type=str,
            default="pretrain-output",
            help="folder for config.yaml, last.ckpt and the TensorBoard files",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from; `last` for last.ckpt in the output folder",
        )
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check what Lightning would refuse late or in words of its own."""
        super().parse_arguments(parser, args)
        keep_integers(self.config["trainer"], self._given)
        check_config(self.config)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer with this command's checkpoints, logger and seeding."""
        folder = Path(self.config["output"])
        callbacks = [
            # One file, replaced after every epoch, once the weights have been found finite.
            ModelCheckpoint(
                dirpath=folder,
                filename="last",
                monitor=None,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
        settings: dict[str, Any] = {**self.config_init["trainer"], **kwargs}
        keep_integers(settings, self._given)  # instantiating parses once more
        settings["callbacks"] = [*callbacks, *_as_list(settings.get("callbacks"))]
        settings["plugins"] = [AtomicCheckpointIO(), *_as_list(settings.get("plugins"))]
        if settings.get("logger") in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name=None, version="tensorboard")
        settings["default_root_dir"] = settings.get("default_root_dir") or str(folder)
        trainer = Trainer(**settings)
        _warn_of_slow_half(trainer)
        return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines in which Lightning tells which devices it found."""
    # Lightning's other package, where it is imported too, takes over the lines of both.
    packages = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in packages]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _warn_of_slow_half(trainer: Trainer) -> None:
    """Say that half precision, which saves time on a GPU, costs it on this processor."""
    half = str(trainer.precision).startswith(("bf16", "16"))
    # Kernels for bfloat16 begin with AVX-512; before it every product is converted back and forth.
    emulated = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    if half and emulated and trainer.strategy.root_device.type == "cpu":
        warnings.warn(
            f"trainer.precision {trainer.precision} is emulated on this processor, and slower than "
            "32-true by up to ten times; set trainer.precision to 32-true",
            stacklevel=2,
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def pretrain(arguments: Sequence[str] | Mapping[str, Any]) -> Trainer:
    """Pretrain an encoder as a command line or a configuration says.

    Writes `config.yaml`, the resolved configuration, and after every epoch `last.ckpt` into the
    output folder; `diverged.txt`, where the loss was no longer finite, says why it ended.

    Args:
        arguments: the words after `lightly-collapse pretrain`, or the configuration itself, as a
            mapping with the keys of a configuration file and, besides, `output` and `ckpt_path`.

    Returns:
        The trainer after training, with the method as its `lightning_module`.

    Raises:
        ValueError: if an argument, the configuration, the data or a checkpoint is at fault, or the
            loss is no longer finite.
        OSError: if something cannot be read or written.
    """
    if isinstance(arguments, Mapping):
        check_config(arguments)
        given = dict(arguments)
        parsed: list[str] | dict[str, Any] = given
    else:
        if LIST_CONFIGS in arguments:
            print("\n".join(list_configs("pretrain")))
            sys.exit()
        check_words(arguments)
        config, rest = split_config(arguments)
        given = merge(config, plain_settings(rest))
        parsed = ["--config", yaml.safe_dump(config, sort_keys=False), *rest] if config else rest
    try:
        with warnings.catch_warnings(), quiet():
            # Lightning warns of arguments that are not those of the process.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            trainer_given = given.get("trainer")
            cli = _PretrainCLI(parsed, trainer_given if isinstance(trainer_given, Mapping) else {})
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    cli.datamodule.seed = cli.config["seed_everything"]
    folder = check_writable_folder(cli.config["output"])
    trainer: Trainer = cli.trainer
    with hold_folder(folder) if trainer.is_global_zero else nullcontext():
        _fit(cli, folder)
    return trainer


def _fit(cli: _PretrainCLI, folder: Path) -> None:
    trainer: Trainer = cli.trainer
    checkpoint = _checkpoint(cli, folder)
    if trainer.is_global_zero:
        (folder / DIVERGED).unlink(missing_ok=True)
        text = cli.parser.dump(cli.config, skip_none=False)
        atomic_write(folder / "config.yaml", text.encode())
    # config.yaml, which the checkpoint folder holds by now, is this run's own.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except DivergedError as error:
        atomic_write(folder / DIVERGED, f"{error}\n".encode())
        raise
    except SystemExit:
        # Lightning exits with status 1 when a training is interrupted.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _checkpoint(cli: _PretrainCLI, folder: Path) -> str | None:
    last = folder / "last.ckpt"
    path = cli.config["ckpt_path"]
    if path is None:
        if last.exists():
            raise ValueError(
                f"output {folder} holds a run already: pass --ckpt_path last to resume it, "
                "or another --output"
            )
        return None
    path = str(last) if path == "last" else path
    check_checkpoint(path, cli.model.name, cli.model.backbone_settings)
    return path


# What jsonargparse says about each type that a value might have had.
_NOISE = re.compile(
    r"^(Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but|$)"
)


def explain(message: str) -> str:
    """A parser's message without the alternatives, the setting named by its path.

    Args:
        message: what jsonargparse says, on several lines.

    Returns:
        One line.

    Examples:
        >>> explain('Parser key "a": Parser key "b": Expected a typing.Literal[1, 2]. Got: 3')
        'a.b: Expected one of 1, 2. Got: 3'
    """
    message = message.replace("Does not validate against any of the Union subtypes", "")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = " ".join(line for line in lines if not _NOISE.match(line))
    kept = re.sub(r"Problem with given class_path '[^']*': ", "", kept)
    keys = re.findall(r'Parser key "([^"]+)": ', kept)
    if keys:
        kept = ".".join(keys) + ": " + re.sub(r'Parser key "[^"]+": ', "", kept)
    return re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", kept)
