"""The `lightly-collapse` command: parses, calls one function, prints.

The options of a verb are the parameters of its function: types, choices, ranges, defaults and help
are read from the function's source. So nothing heavy is imported before the arguments have been
checked.
"""

import argparse
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from typing_extensions import override

from lightly_collapse import __version__
from lightly_collapse._arguments import check
from lightly_collapse._combinations import (
    check_compare,
    check_demo,
    check_engine,
    check_export,
    check_measure,
    check_predict,
    check_probe,
    check_select,
    check_toy,
)
from lightly_collapse._names import check_choice, suggestion
from lightly_collapse._signatures import Parameter, read_signature, read_summary
from lightly_collapse.io.pipes import ending_with_the_reader

_NO_MEMORY = r"out of memory|not enough memory|can't allocate memory"  # in torch's messages
_LOST_PROCESS = r"Connection (closed|reset) by peer|remote process (exited|has)"  # gloo, NCCL
_LONGEST_WORD = 300
_DESCRIPTION = "Prevent, measure, explain and transfer dimensional collapse."


@dataclass(frozen=True)
class Verb:
    """A verb and the function that it calls.

    Attributes:
        module: the function's module, imported when the verb runs.
        function: its name.
        positional: parameters that are given without an option.
        options: names of options that are not those of the parameters.
        words: whether the function has a parser of its own and takes the words as they are.
        check: raises a ValueError where arguments do not go together; called before the import.
        complete: adds arguments that the given ones imply.
    """

    module: str
    function: str
    positional: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    words: bool = False
    check: Callable[..., None] | None = None
    complete: Callable[[dict[str, Any]], None] | None = None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return read_summary(self.module, self.function)

    def parameters(self) -> dict[str, Parameter]:
        """The function's parameters."""
        return read_signature(self.module, self.function)

    def load(self) -> Callable[..., object]:
        """The function."""
        function: Callable[..., object] = getattr(
            importlib.import_module(self.module), self.function
        )
        return function


def _with_pretraining(given: dict[str, Any]) -> None:
    """Where a run's config.yaml is beside a checkpoint, its images are prepared as in the run."""
    checkpoint = Path(given.get("checkpoint", ""))
    if "checkpoint" in given and (checkpoint.parent / "config.yaml").is_file():
        from lightly_collapse.pretrain.evaluate import pretraining_images  # noqa: PLC0415

        given["pretraining"] = pretraining_images(checkpoint)


def _check_pretrain(words: Sequence[str]) -> None:
    from lightly_collapse.pretrain.checks import check_words  # noqa: PLC0415

    check_words(words)


def _check_sweep(path: str, engine: str = "local", address: str | None = None, **_: Any) -> None:
    from lightly_collapse.pretrain.configs import find_config  # noqa: PLC0415

    find_config(path, "sweep")
    check_engine(engine, address)


VERBS = {
    "demo": Verb("lightly_collapse.pretrain.demo.run", "demo", check=check_demo),
    "pretrain": Verb(
        "lightly_collapse.pretrain.command", "pretrain", words=True, check=_check_pretrain
    ),
    "probe": Verb("lightly_collapse.pretrain.evaluate", "probe", check=check_probe),
    "sweep": Verb(
        "lightly_collapse.pretrain.sweep",
        "sweep",
        ["path"],
        {"overrides": "set"},
        check=_check_sweep,
    ),
    "measure": Verb(
        "lightly_collapse.report.command",
        "measure_command",
        check=check_measure,
        complete=_with_pretraining,
    ),
    "compare": Verb(
        "lightly_collapse.report.command", "compare_command", ["reports"], check=check_compare
    ),
    "select": Verb(
        "lightly_collapse.report.select", "select_command", ["reports"], check=check_select
    ),
    "predict": Verb("lightly_collapse.report.predict", "predict", check=check_predict),
    "diagnose": Verb("lightly_collapse.pretrain.diagnose", "diagnose_command", ["run"]),
    "toy": Verb("lightly_collapse.report.toy", "toy", ["experiment"], check=check_toy),
    "export": Verb("lightly_collapse.export.command", "export", check=check_export),
}
"""The verbs by name."""

_EMBEDDINGS = Verb(
    "lightly_collapse.report.embeddings_command", "embeddings_command", check=check_engine
)


def _verbs(words: Sequence[str]) -> Mapping[str, Verb]:
    """The verbs; with `--embeddings`, measure is that of embeddings in files."""
    if any(word.partition("=")[0] == "--embeddings" for word in words):
        return {**VERBS, "measure": _EMBEDDINGS}
    return VERBS


class _UsageError(ValueError):
    """A word of the command line that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, so that they are printed like all others."""

    @override
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb of the command line.

    Args:
        argv: the words after the program's name; those of the process by default. `--debug` may
            stand anywhere among them.

    Returns:
        The exit status: 0; 2 after a one-line message on standard error where an argument, an
        input or an output is at fault; 1 after one where the program is; 130 when interrupted.

    Raises:
        SystemExit: after `--help`, and with status 141 where nobody reads the output any more.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    name = f"lightly-collapse {words[0]}" if words and words[0] in VERBS else "lightly-collapse"
    # The name of a file can be bytes that are no text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with ending_with_the_reader():
            _run(words)
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        status, message = _explained(error)
        with suppress(BrokenPipeError):
            print(f"{name}: {' '.join(map(_shortened, message.split()))}", file=sys.stderr)
        return status
    return 0


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit status and the message for an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, (ValueError, OSError)):
        # That of a process that reads data comes with its traceback, the message at the end.
        _, _, message = str(error).rpartition(f"{type(error).__name__}: ")
        return 2, f"error: {message if 'Original Traceback' in str(error) else error}"
    # torch's own, on a GPU and on the CPU, are no MemoryError.
    if isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error)):
        return 2, "error: not enough memory: take smaller batches, or fewer or smaller images"
    if re.search(_LOST_PROCESS, str(error)):
        return 2, "error: another process of this training has ended; its message says why"
    return 1, (
        f"unexpected error, {type(error).__name__}: {error}; this should not happen: please "
        "report it together with what the same command prints with --debug"
    )


def _shortened(word: str) -> str:
    """A word that fits a line of a terminal or two: a number of thousands of digits does not."""
    return word if len(word) <= _LONGEST_WORD else f"{word[: _LONGEST_WORD // 2]}..."


def _run(words: Sequence[str]) -> None:
    if words and words[0] in VERBS and VERBS[words[0]].words:
        verb = VERBS[words[0]]
        if verb.check is not None:
            verb.check(words[1:])
        verb.load()(words[1:])
        return
    if words and not words[0].startswith("-"):
        check_choice("verb", words[0], VERBS)
    given = _parse(words)
    verb = _verbs(words)[given.pop("verb")]
    parameters = verb.parameters()
    for name, value in given.items():
        check(name, parameters[name].annotation, value)
    if verb.check is not None:
        verb.check(**given)
    if verb.complete is not None:
        verb.complete(given)
    verb.load()(**given)


def _parse(words: Sequence[str]) -> dict[str, Any]:
    """The arguments by name, and the verb."""
    parser, subparsers = _parsers(words)
    given, unknown = parser.parse_known_args(words)
    if unknown:
        # Only what begins as an option can be a misspelt one.
        options = [o for o in subparsers[given.verb].format_usage().split() if o.startswith("[--")]
        known = [option.strip("[]") for option in options]
        near = suggestion(unknown[0], known) if unknown[0].startswith("--") else ""
        raise _UsageError(f"unrecognized arguments: {' '.join(unknown)}{near}")
    return vars(given)


def _parsers(words: Sequence[str]) -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and those of the verbs by name."""
    parser = _Parser(
        prog="lightly-collapse",
        description=_DESCRIPTION,
        epilog="--debug, before or after the verb, prints the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, verb in _verbs(words).items():
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary,
            argument_default=argparse.SUPPRESS,
        )
        if name in words and not verb.words:
            for parameter in verb.parameters().values():
                _add_argument(sub, verb, parameter)
    return parser, verbs.choices


def _add_argument(parser: argparse.ArgumentParser, verb: Verb, parameter: Parameter) -> None:
    kind, count = _value_type(parameter.annotation)
    option = verb.options.get(parameter.name, parameter.name).replace("_", "-")
    settings: dict[str, Any] = {"help": _help(parameter)}
    if kind is bool:
        parser.add_argument(f"--{option}", action=argparse.BooleanOptionalAction, **settings)
        return
    settings |= {"type": kind, "metavar": _metavar(parameter, kind), "nargs": count}
    if parameter.name in verb.positional:
        parser.add_argument(parameter.name, **settings)
        return
    if count == "+":
        settings["action"] = "extend"
    parser.add_argument(f"--{option}", dest=parameter.name, required=parameter.required, **settings)


def _value_type(annotation: Any) -> tuple[Any, str | int | None]:  # noqa: PLR0911
    """The type of one value, and argparse's `nargs`: None for one value, `+` or a number."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _value_type(parts[0])
    if origin is Literal:
        return type(parts[0]), None
    if origin is Sequence:
        return _value_type(parts[0])[0], "+"
    if origin is tuple:
        return _value_type(parts[0])[0], len(parts)
    if origin is os.PathLike:
        return str, None
    if origin is not None:
        return next(_value_type(part) for part in parts if part not in (None, type(None)))
    return annotation, None


def _metavar(parameter: Parameter, kind: Any) -> str:
    return {int: "N", float: "X"}.get(kind, parameter.name.upper())


def _help(parameter: Parameter) -> str:
    text = parameter.help
    if parameter.default and "default" not in text:
        text += f" (default: {parameter.default})"
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
