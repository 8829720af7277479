"""Arguments that say which values they take, for functions and for the command line alike.

A function annotates its parameters (`seed: Seed = 0`) and `validated` checks them when it is
called. `_signatures.read_signature` reads the same annotations from the source, so that a command
line can be built and checked without importing what the function needs.
"""

import functools
import inspect
import math
import os
import re
import tempfile
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from lightly_collapse._names import check_arch, check_choice

_DIGITS = 30  # shown of a number
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Bound:
    """A range of finite numbers that 64 bits can hold.

    Attributes:
        minimum: the least value.
        maximum: the largest value.
        open: whether `minimum` and `maximum` themselves are outside.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    open: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise a ValueError unless the value is in the range."""
        inside = (
            self.minimum < value < self.maximum
            if self.open
            else self.minimum <= value <= self.maximum
        )
        shown = f"{value}" if len(f"{value}") <= _DIGITS else f"{f'{value}'[:_DIGITS]}..."
        if not inside or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name} must be {self._words()}, got {shown}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{name} must be below 2^63, got {shown}")

    def _words(self) -> str:
        if self.maximum < math.inf:
            low, high = f"{self.minimum:.10g}", f"{self.maximum:.10g}"
            return f"between {low} and {high}"
        return f"{'finite and above' if self.open else 'at least'} {self.minimum:g}"


@dataclass(frozen=True)
class Check:
    """A condition that is more than a range.

    Attributes:
        check: called with the argument's name and value; raises a ValueError or an OSError.
    """

    check: Callable[[str, Any], None]


def check_not_empty(name: str, value: str | os.PathLike[str]) -> None:
    """Raise a ValueError at an empty text, which as a path would be the working directory."""
    if not os.fspath(value):
        raise ValueError(f"{name} must not be empty")


def _check_images(name: str, value: str) -> None:
    if value != "digits" and not (value and Path(value).is_dir()):
        raise ValueError(f"{name} must be `digits` or a folder of images, got {value}")


def _check_checkpoint(name: str, value: str | os.PathLike[str]) -> None:
    check_not_empty(name, value)
    if not str(value).startswith(_REMOTE) and not Path(value).is_dir():
        _check_file(name, value)


def _check_file(name: str, value: str | os.PathLike[str]) -> None:
    """A pipe or a device, which might never end, is no file either."""
    check_not_empty(name, value)
    if not Path(value).is_file():
        if Path(value).is_dir():
            kind = "is a folder, not a file"
        else:
            kind = "is not a regular file" if Path(value).exists() else "does not exist"
        raise FileNotFoundError(f"{name} {value} {kind}")


def _check_config(name: str, value: str) -> None:
    """A name without a suffix is that of a shipped configuration, which its reader looks up."""
    check_not_empty(name, value)
    if Path(value).suffix or os.sep in value:
        _check_file(name, value)


def _check_source(name: str, value: str) -> None:
    """Of a glob or a URL nothing can be said before it is looked up."""
    check_not_empty(name, value)
    if not re.search(r"[*?[{]|^\w+:", value) and not Path(value).exists():
        raise FileNotFoundError(f"{name} {value} does not exist")


def check_output(name: str, value: str | os.PathLike[str]) -> None:
    """Raise unless a folder could be written, without making it.

    A command that fails before its work leaves no folder behind.

    Args:
        name: of the argument.
        value: the folder.

    Raises:
        OSError: if it or the folder that it would be made in cannot be written, naming it.
    """
    check_not_empty(name, value)
    folder = Path(value)
    # A link to nothing exists for mkdir.
    existing = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except NotADirectoryError:
        why = "is a link to nothing" if existing.is_symlink() else "is a file"
    except FileNotFoundError:
        why = "is a link to nothing" if existing.is_symlink() else "takes no files"
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
    else:
        return
    raise OSError(f"cannot write to the {name} folder {value}: {existing} {why}")


def _check_output_file(name: str, value: str) -> None:
    check_not_empty(name, value)
    if Path(value).is_dir():
        raise IsADirectoryError(f"{name} must be a file to write, got the folder {value}")
    check_output(name, Path(value).parent)


def _check_device(name: str, value: str) -> None:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(:\d{1,3})?", value):
        raise ValueError(f"{name} must be auto, cpu, cuda, cuda:N or mps, got {value!r}")


def _check_workers(name: str, value: int) -> None:
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most} on this machine, got {value}")


_REMOTE = ("hf-hub:", "torch.hub:")  # checkpoints that are not files

Seed = Annotated[int, Bound(0, 2**32 - 1)]
Count = Annotated[int, Bound(1)]
AtLeastTwo = Annotated[int, Bound(2)]
UpTo1000 = Annotated[int, Bound(1, 1000)]
Steps = Annotated[int, Bound(1, 10**7)]
StepsOrNone = Annotated[int, Bound(0, 10**7)]
Epochs = Annotated[int, Bound(1, 10**6)]
Natural = Annotated[int, Bound(0)]
Share = Annotated[float, Bound(0, 1)]
OpenShare = Annotated[float, Bound(0, 1, open=True)]
PositiveFloat = Annotated[float, Bound(0, open=True)]
NonNegativeFloat = Annotated[float, Bound(0)]
UpToAMillion = Annotated[float, Bound(0, 1e6)]
ImageSize = Annotated[int, Bound(1, 8192)]
ImageData = Annotated[str, Check(_check_images)]
Checkpoint = Annotated[str | os.PathLike[str], Check(_check_checkpoint)]
InputFile = Annotated[str | os.PathLike[str], Check(_check_file)]
Config = Annotated[str, Check(_check_config)]
EmbeddingFiles = Annotated[str, Check(_check_source)]
OutputFolder = Annotated[str | os.PathLike[str], Check(check_output)]
OutputFile = Annotated[str, Check(_check_output_file)]
Arch = Annotated[str, Check(check_arch)]
Workers = Annotated[int, Check(_check_workers)]
Name = Annotated[str, Check(check_not_empty)]
Device = Annotated[str, Check(_check_device)]


def check(name: str, annotation: Any, value: Any) -> None:
    """Check a value against an annotation.

    Args:
        name: of the argument, for messages.
        annotation: one of the types above, a `Literal`, or a union or sequence of such; anything
            else passes.
        value: what came.

    Raises:
        ValueError: if it is outside the range or none of the choices; the message names the
            argument, what is needed and what came.
        OSError: if it names a file or folder that cannot be read or written.

    Examples:
        >>> check("seed", Seed, 3)
        >>> check("seed", Seed, -1)
        Traceback (most recent call last):
        ValueError: seed must be between 0 and 4294967295, got -1
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for condition in annotation.__metadata__:
            condition.check(name, value)
    elif origin is Literal:
        check_choice(name, value, parts)
    elif origin in (Union, types.UnionType):
        if value is not None:
            for part in parts:
                check(name, part, value)
    elif origin is Sequence:
        for item in value:
            check(name, parts[0], item)


def validated(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Check the arguments against the function's annotations at every call.

    Examples:
        >>> @validated
        ... def train(epochs: Count) -> str:
        ...     return f"{epochs} epochs"
        >>> train(epochs=0)
        Traceback (most recent call last):
        ValueError: epochs must be at least 1, got 0
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check(name, signature.parameters[name].annotation, value)
        return function(*args, **kwargs)

    return call
