"""The layers of the package, read off its imports, and what an import loads."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import lightly_collapse

PACKAGE = Path(lightly_collapse.__file__).parent
ROOT = PACKAGE.parent

# A part may import itself and what stands lower; parts on one level know nothing of each other.
LEVEL = {
    "_names": -3,
    "_arguments": -2,
    "_combinations": -1,
    "_signatures": -1,
    "_checks": -1,
    "_extra_callbacks": -1,
    "_distributed": -1,
    "_hooks": -1,
    "_layers": -1,
    "functional": 0,
    "loss": 1,
    "models": 1,
    "metrics": 1,
    "theory": 1,
    "metric_learning": 2,
    "io": 2,
    "tracking": 3,
    "export": 3,
    "report": 3,
    "callbacks": 4,
    "pretrain": 4,
    "cli": 5,
}
OPTIONAL = {
    "pytorch_metric_learning": "metric_learning",
    **dict.fromkeys(("skdim", "timm", "detectron2", "lightning"), ""),
    **dict.fromkeys(("fsspec", "lance", "pyarrow", "ray", "zarr"), ""),
}


def part(path: Path) -> str:
    """The first name below the package: `functional`, `loss`, `cli`, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, at its top or anywhere within."""
    package = ["lightly_collapse", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            if module == ["lightly_collapse"]:
                yield from (f"lightly_collapse.{alias.name}" for alias in node.names)
            else:
                yield ".".join(module)


def imported_modules(path: Path, modules: Collection[str]) -> Iterator[str]:
    """The modules of the package behind a file's imports: `from a import b` is a.b if a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names = (f"{node.module}.{alias.name}", str(node.module))
                yield from [name for name in names if name in modules][:1]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    here = part(path)
    if here == "__init__":
        assert not list(imports(path)), "importing the package must load nothing else"
        return
    assert here in LEVEL, f"{here} has no place among the layers"
    for name in imports(path):
        root, _, rest = name.partition(".")
        if root != "lightly_collapse":
            continue
        there = rest.split(".")[0]
        if there in {here, "__version__"}:
            continue
        assert here == "cli" or LEVEL.get(there, 99) < LEVEL[here], f"{here} imports {name}"


def test_no_circle_among_the_modules() -> None:
    names = {
        ".".join(("lightly_collapse", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): p
        for p in FILES
    }
    graph = {name: set(imported_modules(path, names)) - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for inner in sorted(graph[name]):
                visit(inner, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_private_module_of_another_part(path: Path) -> None:
    for name in imports(path):
        root, _, rest = name.partition(".")
        first, *inner = rest.split(".")
        if root == "lightly_collapse" and first != part(path):
            assert not any(word.startswith("_") for word in inner if word != "__version__"), name


@pytest.mark.parametrize("name", ["functional", "loss", "metrics"])
def test_light_parts_load_no_more_than_what_they_stand_on(name: str) -> None:
    code = (
        "import sys, torch, torchmetrics, lightly.loss\n"
        "before = set(sys.modules)\n"
        f"import lightly_collapse.{name}\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not set(done.stdout.split()) & {"matplotlib", "rich", "jinja2", "pytorch_lightning"}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if LEVEL.get(part(p), 99) <= 0],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_ground_floor_stands_on_torch_alone(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    # danco() asks for scikit-dimension when it is called, and not before.
    assert roots <= {"torch", "typing_extensions", "lightly_collapse", "skdim"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_asked_for_only_where_they_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:  # what an import of the file itself runs
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert OPTIONAL.get(name.split(".")[0], part(path)) == part(path)


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import lightly_collapse\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {"lightly_collapse"}


@pytest.mark.parametrize("name", ["functional", "loss", "models"])
def test_public_names(name: str) -> None:
    module = __import__(f"lightly_collapse.{name}", fromlist=["*"])
    for public in module.__all__:
        member = getattr(module, public)
        assert member.__module__.startswith(f"lightly_collapse.{name}.")
        assert "Examples:" in member.__doc__
        is_error = isinstance(member, type) and issubclass(member, Exception)
        assert is_error or "Raises:" in member.__doc__
    assert module.__all__ == sorted(module.__all__)


def test_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout")
def test_wheel_holds_every_file_of_the_package() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    files = {f.distribution_path for f in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "lightly_collapse/py.typed" in files
    assert {p.relative_to(ROOT).as_posix() for p in FILES} <= files
    assert all(name.startswith("lightly_collapse/") for name in files)
    parts = {
        p.relative_to(ROOT).as_posix()
        for p in PACKAGE.glob("report/pages/**/*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert parts <= files
    assert "lightly_collapse/report/pages/vega/LICENSE" in parts
