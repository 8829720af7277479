"""Sphinx settings; CONTRIBUTING.md has the command that builds the site."""

import importlib
import inspect
import os
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))  # the gallery's detection example

import lightly_collapse

project = "lightly-collapse"
author = copyright = "the lightly-collapse developers"
release = version = lightly_collapse.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
default_role = "literal"  # docstrings quote code by single backticks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which types do not
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"lightly-collapse {release}"

if os.environ.get("DOCS_ONLINE"):  # links to other projects need their inventories
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://pytorch.org/docs/stable", None),
        "lightly": ("https://docs.lightly.ai/self-supervised-learning", None),
        "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "plot_",
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
}
warnings.filterwarnings("ignore", category=DeprecationWarning)


def _table(lines: list[str]) -> list[str]:
    """A Markdown table as a list-table of reStructuredText."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    out = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        out += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return [*out, ""]


def convert_tables(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings hold Markdown tables, which are easier to read in the source."""
    out: list[str] = []
    table: list[str] = []
    for line in [*lines, ""]:
        if re.match(r"\s*\|.*\|\s*$", line):
            table.append(line)
            continue
        if table:
            out += _table(table)
            table = []
        if not line.lstrip().startswith((">>>", "...")):
            # Norms and kernel sizes; in reStructuredText the signs mean something else.
            escaped = re.sub(r"(?<![`\\])\|", r"\\|", line)
            out.append(re.sub(r"(?<![\w*`\\])\*(?=\w+[,)])", r"\\*", escaped))
        else:
            out.append(line)
    lines[:] = out[:-1]


def public_modules() -> list[ModuleType]:
    """Every module of the package, but the private ones and the commands' pages."""
    found = [
        module.name
        for module in pkgutil.walk_packages(lightly_collapse.__path__, "lightly_collapse.")
        if not re.search(r"\._|\.cli$|\.report\.pages", module.name)
    ]
    return [importlib.import_module(name) for name in sorted(found)]


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or what it defines without an underscore."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", None) == module.__name__
    ]


def named(path: str) -> object:
    """What a dotted name means to those who import it from its package."""
    package, _, name = path.rpartition(".")
    return getattr(sys.modules[package], name)


def write_reference(folder: Path) -> None:
    """A page for every part of the package, and on it every public name once.

    A name that a package re-exports stands under the package, as it is imported from there.
    """
    folder.mkdir(exist_ok=True)
    seen: set[int] = set()
    pages: dict[str, list[str]] = {}
    # Packages first: their names are the shorter ones.
    for module in sorted(public_modules(), key=lambda m: (not hasattr(m, "__all__"), m.__name__)):
        names = [n for n in public_names(module) if id(getattr(module, n)) not in seen]
        seen |= {id(getattr(module, n)) for n in names}
        if not names:
            continue
        part = module.__name__.split(".")[1]
        pages.setdefault(part, [f"# lightly_collapse.{part}\n"]).append(
            f"## {module.__name__}\n\n```{{eval-rst}}\n.. automodule:: {module.__name__}\n"
            "   :members: "
            + ", ".join(names)
            + "\n   :imported-members:\n"
            # A function of a package may have the name of the module that it is from.
            + ("" if sys.modules[module.__name__] is named(module.__name__) else "   :no-index:\n")
            + "```\n"
        )
    for part, blocks in pages.items():
        text = "\n".join(blocks)
        path = folder / f"{part}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()


write_reference(Path(__file__).parent / "api")


def setup(app) -> None:
    """Register the conversion."""
    app.connect("autodoc-process-docstring", convert_tables, priority=400)
