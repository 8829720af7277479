"""Functions' parameters read from their source, so that a command line needs no heavy import."""

import ast
import re
import textwrap
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_origin

from lightly_collapse import _arguments
from lightly_collapse._names import read_module

_PLAIN = {kind.__name__: kind for kind in (int, float, str, bool)}
_NO_WORD = object()


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
        self.tree = read_module(module)

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
            if get_origin(getattr(_arguments, node.id, None)) is Annotated:
                return getattr(_arguments, node.id)
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
                "lightly_collapse."
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
