"""Self-contained HTML pages from the package's templates.

A page holds its style, its data and its scripts, and asks the network for nothing: its content
security policy lets no other script run, not even one that slipped into a name.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lightly_collapse.io.files import printable
from lightly_collapse.report.glossary import HELP, Help
from lightly_collapse.report.pages.charts import Chart

_FOLDER = Path(__file__).parent
_VEGA = ("vega/vega.min.js", "vega/vega-lite.min.js", "vega/vega-embed.min.js")


class MeasureLinks:
    """What a page's measures lead to: what is said of each at the end of the same page.

    Attributes:
        linked: by the id of its place the help of every measure that was asked for, in that order.
    """

    def __init__(self) -> None:
        self.linked: dict[str, Help] = {}

    def link(self, name: str) -> str:
        """The address of a measure's help within the page.

        Args:
            name: of the measure, as in `HELP`.

        Raises:
            KeyError: if nothing is said of the measure.

        Examples:
            >>> MeasureLinks().link("effective_rank")
            '#about-effective-rank'
        """
        place = f"about-{name.replace('_', '-')}"
        self.linked[place] = HELP[name]
        return f"#{place}"


@cache
def _environment(folder: Path | None) -> jinja2.Environment:
    loaders: list[jinja2.BaseLoader] = [jinja2.PackageLoader("lightly_collapse.report.pages")]
    if folder is not None:
        loaders.append(jinja2.FileSystemLoader(folder))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment


@cache
def _script(name: str) -> tuple[Markup, str]:
    """A script of this folder, and its hash as a content security policy names it."""
    text = (_FOLDER / name).read_text(encoding="utf-8")
    # The map of a minified file is not in the page.
    text = "\n".join(x for x in text.splitlines() if not x.startswith("//# sourceMappingURL"))
    digest = hashlib.sha256(text.encode()).digest()
    return Markup(text), f"'sha256-{base64.b64encode(digest).decode()}'"


def render(
    template: str,
    folder: Path | None = None,
    charts: Mapping[str, Chart | None] | None = None,
    **context: Any,
) -> str:
    """Fill a template of `lightly_collapse/report/pages/templates`.

    Args:
        template: its file name.
        folder: further templates, which may extend the package's `base.html`.
        charts: its charts by name; the script that draws them is in the page where there are any.
        context: its variables; text is escaped, figures of `to_svg` are put in as they are.

    Returns:
        The page.

    Raises:
        jinja2.UndefinedError: if the template uses a variable that is not given.

    Examples:
        >>> render("base.html", title="A page").splitlines()[0]
        '<!doctype html>'
    """
    charts = charts or {}
    names = (*(_VEGA if any(charts.values()) else ()), "page.js")
    scripts = [_script(name) for name in names]
    page = (
        _environment(folder)
        .get_template(template)
        .render(
            charts=charts,
            measures=MeasureLinks(),
            scripts=[text for text, _ in scripts],
            script_hashes=" ".join(digest for _, digest in scripts),
            **context,
        )
    )
    return printable(page)
