"""Arguments that say which values they take, for functions and for the command line alike.

A function annotates its parameters (`seed: Seed = 0`), `validated` checks them when it is called,
and `read_signature` reads the same annotations, defaults and docstring from the source, so that a
command line can be built and checked without importing what the function needs.
"""

import ast
import functools
import inspect
import math
import os
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

_PACKAGE = Path(__file__).parent
_PLAIN = {kind.__name__: kind for kind in (int, float, str, bool)}
_NO_WORD = object()
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Bound:
    """A range of finite numbers.

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
        if not inside or not math.isfinite(value):
            raise ValueError(f"{name} must be {self._words()}, got {value}")

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


def _check_images(name: str, value: str) -> None:
    if value != "digits" and not Path(value).is_dir():
        raise ValueError(f"{name} must be `digits` or a folder of images, got {value}")


def _check_checkpoint(name: str, value: str | os.PathLike[str]) -> None:
    if not str(value).startswith("hf-hub:") and not Path(value).exists():
        raise FileNotFoundError(f"{name} {value} does not exist")


def _check_file(name: str, value: str | os.PathLike[str]) -> None:
    if not Path(value).is_file():
        kind = "is a folder, not a file" if Path(value).is_dir() else "does not exist"
        raise FileNotFoundError(f"{name} {value} {kind}")


def _check_config(name: str, value: str) -> None:
    """A name without a suffix is that of a shipped configuration, which its reader looks up."""
    if Path(value).suffix or os.sep in value:
        _check_file(name, value)


def _check_output(name: str, value: str | os.PathLike[str]) -> None:
    """Without making it: a command that fails before its work leaves no folder behind."""
    folder = Path(value)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "cannot be written" if existing.is_dir() else "is a file"
        raise OSError(f"cannot write to the {name} folder {value}: {existing} {why}")


def _check_device(name: str, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|[a-z]{2,8}(:\d{1,3})?", value) or value == "meta":
        raise ValueError(f"{name} must be auto, cpu, cuda, cuda:N or mps, got {value!r}")


Seed = Annotated[int, Bound(0, 2**32 - 1)]
Count = Annotated[int, Bound(1)]
AtLeastTwo = Annotated[int, Bound(2)]
Natural = Annotated[int, Bound(0)]
Share = Annotated[float, Bound(0, 1)]
OpenShare = Annotated[float, Bound(0, 1, open=True)]
PositiveFloat = Annotated[float, Bound(0, open=True)]
NonNegativeFloat = Annotated[float, Bound(0)]
ImageSize = Annotated[int, Bound(1, 8192)]
ImageData = Annotated[str, Check(_check_images)]
Checkpoint = Annotated[str | os.PathLike[str], Check(_check_checkpoint)]
InputFile = Annotated[str | os.PathLike[str], Check(_check_file)]
Config = Annotated[str, Check(_check_config)]
OutputFolder = Annotated[str | os.PathLike[str], Check(_check_output)]
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
        if value not in parts:
            raise ValueError(f"{name} must be one of {', '.join(map(str, parts))}, got {value!r}")
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


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, as its source says.

    Attributes:
        name: of the parameter.
        annotation: its type.
        required: whether there is no default.
        default: the default's text; empty for None and where it is not a plain value.
        help: its description in the docstring.
    """

    name: str
    annotation: Any
    required: bool
    default: str
    help: str


def read_summary(module: str, function: str) -> str:
    """The first line of a function's docstring, read from the source.

    Args:
        module: its full name, in this package.
        function: its name.
    """
    return (ast.get_docstring(_function(_Source(module), function)) or "").partition("\n")[0]


def read_signature(module: str, function: str) -> dict[str, Parameter]:
    """The parameters of a function of this package, read from its source without importing it.

    Args:
        module: its full name.
        function: its name.

    Returns:
        The parameters by name, in order; those of types that no word of a command line can be are
        left out.

    Examples:
        >>> parameters = read_signature("lightly_collapse.io.digits", "digits_split")
        >>> parameters["size"].default, parameters["size"].help
        ('16', 'height and width of the images, in pixels')
    """
    source = _Source(module)
    node = _function(source, function)
    described = _descriptions(ast.get_docstring(node) or "")
    positional = [*node.args.posonlyargs, *node.args.args]
    missing = len(positional) - len(node.args.defaults)
    defaults: list[ast.expr | None] = [*[None] * missing, *node.args.defaults]
    both = zip(
        [*positional, *node.args.kwonlyargs], [*defaults, *node.args.kw_defaults], strict=True
    )
    found = {}
    for argument, default in both:
        kind = source.annotation(argument.annotation) if argument.annotation else _NO_WORD
        if kind is not _NO_WORD:
            found[argument.arg] = Parameter(
                argument.arg, kind, default is None, source.text(default), described[argument.arg]
            )
    return found


def _function(source: "_Source", name: str) -> ast.FunctionDef:
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{source.module} has no function {name}")


def _descriptions(docstring: str) -> dict[str, str]:
    """From the names in the docstring's `Args:` to what it says about them."""
    found = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    entries: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(found.group(1)).splitlines() if found else []:
        if (head := re.match(r"\**(\w+): (.*)", line)) is not None:
            name = head.group(1)
            entries[name] = head.group(2)
        elif name:
            entries[name] += " " + line.strip()
    return {name: text.strip().removesuffix(".") for name, text in entries.items()}


class _Source:
    """A module as its syntax tree, and names looked up through its imports."""

    def __init__(self, module: str) -> None:
        self.module = module
        stem = _PACKAGE.parent.joinpath(*module.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    def annotation(self, node: ast.expr) -> Any:  # noqa: PLR0911  one for each kind of node
        """The type that an annotation stands for; `_NO_WORD` for what only code can pass."""
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        if isinstance(node, ast.BinOp):
            both = (self.annotation(node.left), self.annotation(node.right))
            return _NO_WORD if _NO_WORD in both else Union.__getitem__(both)
        if isinstance(node, ast.Subscript):
            return self._subscript(ast.unparse(node.value), node.slice)
        if isinstance(node, ast.Name):
            if node.id in _PLAIN:
                return _PLAIN[node.id]
            if get_origin(globals().get(node.id)) is Annotated:
                return globals()[node.id]
            source, value = self.value(node.id)
            return source.annotation(value) if value is not None else _NO_WORD
        return _NO_WORD

    def _subscript(self, outer: str, inner: ast.expr) -> Any:
        if outer == "Literal":
            return Literal.__getitem__(ast.literal_eval(inner))
        if outer == "Sequence":
            return types.GenericAlias(Sequence, (self.annotation(inner),))
        if outer == "tuple" and isinstance(inner, ast.Tuple):
            return types.GenericAlias(tuple, tuple(map(self.annotation, inner.elts)))
        return str if outer == "os.PathLike" else _NO_WORD

    def text(self, node: ast.expr | None) -> str:
        """A default as help shows it."""
        if node is None or (isinstance(node, ast.Constant) and node.value is None):
            return ""
        if isinstance(node, ast.Name):
            source, value = self.value(node.id)
            return source.text(value)
        try:
            value = ast.literal_eval(node)
        except ValueError:
            return ""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def value(self, name: str) -> tuple["_Source", ast.expr | None]:
        """What a name is assigned, here or where it is imported from."""
        if name in self._assigned():
            return self, self._assigned()[name]
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                _PACKAGE.name + "."
            ):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _Source(str(node.module)).value(alias.name)
        return self, None

    def _assigned(self) -> dict[str, ast.expr]:
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.value is not None
            ):
                found[node.target.id] = node.value
        return found
