"""The `lightly-collapse` command: parses, calls one function, prints.

Every verb has two functions here: one adds its arguments to a parser, the other imports what the
verb needs and runs it. Nothing heavy is imported before a verb runs, so `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lightly_collapse import __version__

_DESCRIPTION = "Prevent, measure, explain and transfer dimensional collapse."


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="baseline, so, srip, ldreg, directclr, no-projector (default: all of them)",
    )
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("collapse-demo"),
        help="folder for results.json, spectrum.png and report.html (default: %(default)s)",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.demo import demo  # noqa: PLC0415
    from lightly_collapse.pretrain.demo_methods import METHODS  # noqa: PLC0415

    names = [name for word in arguments.methods or METHODS for name in word.split(",") if name]
    demo(names, epochs=arguments.epochs, seed=arguments.seed, output=arguments.output)


def _words(parser: argparse.ArgumentParser) -> None:
    # The verb has its own parser, LightningCLI's: no word is an option here, not even --help.
    parser.prefix_chars = ""
    parser.add_argument("words", nargs=argparse.REMAINDER)


def _pretrain(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.command import pretrain  # noqa: PLC0415

    pretrain(arguments.words)


def _probe(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.probe import probe  # noqa: PLC0415

    probe(arguments.words)


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="YAML file with methods, regularizers and seeds")
    parser.add_argument(
        "--output", type=Path, default=Path("sweep-output"), help="default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the file's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="a setting of every run, such as data.root=/images; can be repeated",
    )
    parser.add_argument(
        "--minutes", type=float, help="begin no further run after as many; run again to go on"
    )


def _sweep(arguments: argparse.Namespace) -> None:
    from lightly_collapse.pretrain.sweep import sweep  # noqa: PLC0415

    sweep(
        arguments.file,
        arguments.output,
        arguments.overrides,
        seeds=arguments.seeds,
        minutes=arguments.minutes,
    )


_Verb = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]
_VERBS: dict[str, _Verb] = {
    "demo": (
        "train a small encoder on real digits by several methods and show how each collapses",
        _demo_arguments,
        _demo,
    ),
    "pretrain": (
        "pretrain an encoder: method, backbone, regularizers and data from a YAML file or options",
        _words,
        _pretrain,
    ),
    "probe": (
        "measure the backbone of a checkpoint: kNN, linear probe, dimensions in use",
        _words,
        _probe,
    ),
    "sweep": (
        "pretrain methods x regularizers x seeds, resumable, and compare them on one page",
        _sweep_arguments,
        _sweep,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb of the command line.

    Args:
        argv: the words after the program's name; those of the process by default.

    Returns:
        The exit status: 0, or 2 after a one-line message on standard error where an argument, an
        input or an output is at fault; 130 when interrupted.
    """
    parser = _Parser(prog="lightly-collapse", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for verb, (summary, add_arguments, run) in _VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary)
        add_arguments(sub)
        sub.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"lightly-collapse {arguments.verb}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lightly-collapse {arguments.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
