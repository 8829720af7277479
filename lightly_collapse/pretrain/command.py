"""The `pretrain` command: LightningCLI with whole checkpoints, exact resuming, plain errors."""

import re
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger

from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.pretrain import data, methods
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO, check_checkpoint
from lightly_collapse.pretrain.configs import split_config
from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.methods.base import Method

METHODS = tuple(methods.__all__)
"""The methods by their names on the command line."""

DATA = tuple(data.__all__)
"""The data modules by their names on the command line."""


class _PretrainCLI(LightningCLI):
    """The parser: `--model`, `--data`, `--trainer`, `--output` and `--ckpt_path`."""

    def __init__(self, arguments: list[str]) -> None:
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
            help="checkpoint to go on from; `last` for last.ckpt in the output folder",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer with this command's checkpoints, logger and seeding."""
        folder = Path(self.config["output"])
        callbacks = [
            # One file, replaced after every epoch; the weights have been found finite by then.
            ModelCheckpoint(
                dirpath=folder,
                filename="last",
                monitor=None,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
        settings: dict[str, Any] = {**self.config_init["trainer"], **kwargs}
        settings["callbacks"] = [*callbacks, *_as_list(settings.get("callbacks"))]
        settings["plugins"] = [AtomicCheckpointIO(), *_as_list(settings.get("plugins"))]
        if settings.get("logger") in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name=None, version="tensorboard")
        settings["default_root_dir"] = settings.get("default_root_dir") or str(folder)
        return Trainer(**settings)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def pretrain(arguments: Sequence[str]) -> Trainer:
    """Pretrain an encoder as the words of the command say.

    Writes `config.yaml`, the resolved configuration, and after every epoch `last.ckpt` into the
    output folder.

    Args:
        arguments: the words after `lightly-collapse pretrain`.

    Returns:
        The trainer after training, with the method as its `lightning_module`.

    Raises:
        ValueError: if an argument, the configuration, the data or a checkpoint is at fault, or the
            loss is no longer finite.
        OSError: if something cannot be read or written.
    """
    config, rest = split_config(arguments)
    words = ["--config", yaml.safe_dump(config, sort_keys=False), *rest] if config else rest
    try:
        with warnings.catch_warnings():
            # The words are the command's own, which Lightning takes for a mistake.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            cli = _PretrainCLI(list(words))
    except (ArgumentError, ValueError) as error:
        raise ValueError(explain(str(error))) from error
    cli.datamodule.seed = cli.config["seed_everything"]
    folder = check_writable_folder(cli.config["output"])
    checkpoint = _checkpoint(cli, folder)
    trainer: Trainer = cli.trainer
    if trainer.is_global_zero:
        text = cli.parser.dump(cli.config, skip_none=False)
        atomic_write(folder / "config.yaml", text.encode())
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint)
    return trainer


def _checkpoint(cli: _PretrainCLI, folder: Path) -> str | None:
    last = folder / "last.ckpt"
    path = cli.config["ckpt_path"]
    if path is None:
        if last.exists():
            raise ValueError(
                f"output {folder} holds a run already: pass --ckpt_path last to go on with it, "
                "or another --output"
            )
        return None
    path = str(last) if path == "last" else path
    check_checkpoint(path, cli.model.name, cli.model.backbone_settings)
    return path


# What jsonargparse says about the forms a value might have had but has not.
_NOISE = re.compile(
    r"^(Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but|$)"
)


def explain(message: str) -> str:
    """A parser's message without the alternatives, and with the names where one is unknown.

    Args:
        message: what jsonargparse says, on several lines.

    Returns:
        One line.
    """
    message = message.replace("Does not validate against any of the Union subtypes", "")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = " ".join(line for line in lines if not _NOISE.match(line))
    for key, known in (("model", METHODS), ("data", DATA)):
        if f'"{key}"' in message and "given class_path" not in message:
            wrong = kept.rsplit(" ", 1)[-1]
            return f"{key} must be one of {', '.join(known)}, got {wrong}"
    return kept
