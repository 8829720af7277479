"""Names that an argument can have, known before the packages that define them are imported."""

import ast
import re
import sys
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parent
# How a model is declared in the sources of torchvision and timm, and an old name of one in timm's.
_REGISTERED = re.compile(r"^@register_model(?:\([^)]*\))?\n(?:[@ )].*\n)*def (\w+)\(", re.MULTILINE)
_OLD_NAMES = re.compile(r"^register_model_deprecations\((.*?)^}\)", re.MULTILINE | re.DOTALL)
_OLD_NAME = re.compile(r"['\"]([\w.]+)['\"]:")


def suggestion(word: str, known: Collection[str]) -> str:
    """What was probably meant, to end a message with; empty where nothing is near.

    Args:
        word: what came.
        known: the names that there are.

    Examples:
        >>> suggestion("resnet19", ["resnet18", "vgg11"])
        '; did you mean resnet18?'
        >>> suggestion("unheard-of", ["resnet18", "vgg11"])
        ''
    """
    by_lower = {name.lower(): name for name in sorted(known)}
    near = get_close_matches(word.lower(), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[name] for name in near)}?" if near else ""


def check_choice(argument: str, word: str, known: Collection[str]) -> None:
    """Raise a ValueError unless a word is one of the names.

    Args:
        argument: what the message calls it.
        word: what came.
        known: the names that there are.

    Examples:
        >>> check_choice("transform", "simlcr", ["simclr", "byol"])
        Traceback (most recent call last):
        ValueError: transform must be one of simclr, byol, got 'simlcr'; did you mean simclr?
    """
    if word not in known:
        raise ValueError(
            f"{argument} must be one of {', '.join(map(str, known))}, got {word!r}"
            + suggestion(str(word), known)
        )


@cache
def read_module(name: str) -> ast.Module:
    """The syntax tree of a module of this package, which is not imported.

    Args:
        name: its full name.
    """
    stem = _PACKAGE.parent.joinpath(*name.split("."))
    path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def read_names(module: str, variable: str) -> tuple[str, ...]:
    """The names in a list, tuple or dictionary of a module of this package, which is not imported.

    Args:
        module: its full name.
        variable: assigned once, at the module's top; others may be starred in it.

    Examples:
        >>> read_names("lightly_collapse.pretrain.data", "__all__")[:2]
        ('CIFAR10', 'CIFAR100')
    """
    assigned: dict[str, ast.expr | None] = {}
    for node in read_module(module).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assigned[node.target.id] = node.value

    def names(node: ast.expr | None) -> Iterator[str]:
        if isinstance(node, ast.Constant):
            yield str(node.value)
        elif isinstance(node, ast.Name):
            yield from names(assigned[node.id])
        elif isinstance(node, ast.Starred):
            yield from names(node.value)
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                yield from names(key)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for item in node.elts:
                yield from names(item)

    return tuple(names(assigned[variable]))


@cache
def registered_models(package: str) -> frozenset[str]:
    """The classification models of torchvision or timm, read from its sources.

    Args:
        package: `torchvision` or `timm`; one that is not installed has none.

    Examples:
        >>> "resnet50" in registered_models("torchvision")
        True
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return frozenset()
    folder = Path(spec.origin).parent / "models"
    # torchvision keeps its detectors and the like, which are no backbones, in folders below.
    files = folder.glob("*.py") if package == "torchvision" else folder.rglob("*.py")
    found: set[str] = set()
    for text in (file.read_text(encoding="utf-8") for file in files):
        found.update(_REGISTERED.findall(text))
        for block in _OLD_NAMES.findall(text):
            found.update(_OLD_NAME.findall(block))
    return frozenset(found)


def check_arch(argument: str, name: str) -> None:
    """Raise a ValueError where a name can be of no model, with the names nearest to it.

    Args:
        argument: what the message calls it.
        name: of a model of this package, torchvision or timm, which may be `timm/<name>` and have
            a tag of weights, `<name>.<tag>`.

    Examples:
        >>> check_arch("arch", "resnet50")
        >>> check_arch("arch", "resnet-50")
        Traceback (most recent call last):
        ValueError: arch must be a model of torchvision ..., got 'resnet-50'; did you mean ...?
    """
    own = read_names("lightly_collapse.io.backbones", "BACKBONES")
    if name in own or name in registered_models("torchvision"):
        return
    plain = name.removeprefix("timm/").partition(".")[0]
    # Once it is imported it knows models that a user registered, too.
    timm = sys.modules.get("timm")
    if plain in registered_models("timm") or (timm is not None and timm.is_model(plain)):
        return
    if find_spec("timm") is None:
        known, hint = registered_models("torchvision"), "; pip install 'lightly-collapse[timm]'"
    else:
        known, hint = registered_models("torchvision") | registered_models("timm"), ""
    raise ValueError(
        f"{argument} must be a model of torchvision or timm (timm/<name>{hint}), or one of "
        f"{', '.join(own)}, got {name!r}{suggestion(plain, known | set(own))}"
    )
