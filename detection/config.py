"""Arguments and configuration files, the same for both trainers.

The files in configs/detection are detectron2's: nested keys, `_BASE_` for the file they build on,
and a list of `KEY value` pairs on the command line that overrides them. They are read here as plain
values, without detectron2 and without running anything that is in them.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from typing_extensions import override

from detection.checks import check_settings
from lightly_collapse.io.pipes import ending_with_the_reader

# The keys of our own among detectron2's, with their defaults.
OUR_DEFAULTS: dict[str, Any] = {
    "DATASETS.ROOT": "",
    "DATASETS.CLASSES": [],
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.LAYER_DECAY": 1.0,
    "MODEL.VIT.PATCH_SIZE": 16,
    "MODEL.VIT.EMBED_DIM": 768,
    "MODEL.VIT.DEPTH": 12,
    "MODEL.VIT.NUM_HEADS": 12,
    "MODEL.VIT.MLP_RATIO": 4.0,
    "MODEL.VIT.PRETRAIN_SIZE": 224,
    "MODEL.VIT.WINDOW_SIZE": 14,
    "MODEL.VIT.GLOBAL_BLOCKS": [2, 5, 8, 11],
    "MODEL.VIT.DROP_PATH": 0.1,
}
DETECTOR_OF = {
    "build_resnet_backbone": "C4",
    "build_resnet_fpn_backbone": "FPN",
    "build_retinanet_resnet_fpn_backbone": "RetinaNet",
    "build_vit_pyramid_backbone": "ViT",
}
"""A short name for the detector of a configuration, by the builder of its backbone."""
_SECTIONS = "MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL"
_PLAIN_KEYS = "OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION"
_KEY = re.compile(rf"(?:{_SECTIONS})(?:\.[A-Z0-9_]+)+|{_PLAIN_KEYS}")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def run_command(parser: argparse.ArgumentParser, run: Callable[[], None]) -> int:
    """Run what a command does.

    Args:
        parser: the command's.
        run: called without arguments.

    Returns:
        The exit status: 0; 2 after one line on standard error where an argument, an input, an
        output or the training's numbers are at fault; 130 after one when interrupted.
    """
    try:
        with ending_with_the_reader():
            run()
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that this project adds to detectron2's."""
    parser.add_argument(
        "--dataset-root",
        type=Path,
        metavar="FOLDER",
        help="a folder in VOC's or COCO's format; DATASETS.TRAIN and TEST then name its splits. "
        "Without it, they name VOC and COCO sets (voc_2007_test) in $DETECTRON2_DATASETS, by "
        "default ./datasets",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="with --dataset-root: the classes (default: those of the annotations)",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="fine-tune although MODEL.WEIGHTS lacks some of the backbone's tensors",
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse, giving the overrides back that an option with several values has taken.

    argparse lets `--classes dog cat OUTPUT_DIR runs/x` take all four words; here a list ends where
    pairs of a configuration key and a value begin.
    """
    arguments = parser.parse_args(argv)
    for name in ("classes", "backbone"):
        words = [str(word) for word in getattr(arguments, name, None) or []]
        keys = [i for i, word in enumerate(words) if _KEY.fullmatch(word)]
        if keys:
            # A class may have a key's name: `--classes LEAF SEED OUTPUT_DIR runs/x`.
            first = next((i for i in keys if _are_pairs(words[i:])), keys[0])
            if not first:
                parser.error(f"argument --{name}: expected at least one value")
            setattr(arguments, name, words[:first])
            arguments.opts = [*words[first:], *arguments.opts]
    return arguments


def _are_pairs(words: Sequence[str]) -> bool:
    return len(words) % 2 == 0 and all(_KEY.fullmatch(key) for key in words[::2])


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """detectron2's standard arguments, and ours."""
    parser = OneLineParser(command, description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=min(1, torch.cuda.device_count()),
        help="0 trains on the CPU; by default one GPU where there is one",
    )
    add_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    return parser


def fragment_beside(weights: str) -> Path | None:
    """The configuration that the export wrote beside a weight file, if there is one."""
    path = Path(weights).with_suffix(".yaml") if weights else None
    return path if path is not None and path.is_file() else None


def apply_arguments(config: Any, arguments: argparse.Namespace) -> None:
    """Check the settings, and put what the command line's options say into them.

    Args:
        config: nested settings, of either trainer; changed in place.
        arguments: of the command.

    Raises:
        ValueError: as `check_settings` does.
    """
    check_settings(config, arguments.num_gpus)
    if arguments.num_gpus == 0 and config["MODEL"]["DEVICE"].startswith("cuda"):
        config["MODEL"]["DEVICE"] = "cpu"
    if arguments.dataset_root is not None:
        config["DATASETS"]["ROOT"] = str(arguments.dataset_root)
    if arguments.classes:
        config["DATASETS"]["CLASSES"] = list(arguments.classes)


def read_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """KEY, value, KEY, value as pairs, each value read as detectron2 reads it.

    Raises:
        ValueError: if a value is missing.

    Examples:
        >>> read_overrides(["SOLVER.STEPS", "(1, 2)", "SEED", "3"])
        [('SOLVER.STEPS', [1, 2]), ('SEED', 3)]
    """
    if len(overrides) % 2:
        raise ValueError(f"overrides must come as KEY VALUE pairs, got {' '.join(overrides)!r}")
    return [(k, _decode(v)) for k, v in zip(overrides[::2], overrides[1::2], strict=True)]


def read_values(path: str | Path) -> list[tuple[str, Any]]:
    """All keys of a configuration file and its bases with their values, the base's first.

    Raises:
        ValueError: if a file is no such configuration.
        OSError: if it cannot be read.
    """
    return _read_chain(Path(path), ())


def _read_chain(path: Path, above: tuple[Path, ...]) -> list[tuple[str, Any]]:
    if path.resolve() in above:
        raise ValueError(f"config {path}: is its own _BASE_")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config {path}: must hold keys and values")
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"config {path}: _BASE_ must be a path, got {base!r}")
    values = _read_chain(path.parent / base, (*above, path.resolve())) if base else []
    return [*values, *_flatten(content)]


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"config: keys must be words, got {prefix}{key!r}")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _decode(value)


def _decode(value: Any) -> Any:
    """As detectron2 does: text that reads as a literal is one; tuples are lists here."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return [_decode(v) for v in value] if isinstance(value, (list, tuple)) else value
