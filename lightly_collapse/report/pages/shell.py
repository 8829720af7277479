"""Self-contained HTML pages from the package's templates."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2


@cache
def _environment(folder: Path | None) -> jinja2.Environment:
    loaders: list[jinja2.BaseLoader] = [jinja2.PackageLoader("lightly_collapse.report.pages")]
    if folder is not None:
        loaders.append(jinja2.FileSystemLoader(folder))
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, folder: Path | None = None, **context: Any) -> str:
    """Fill a template of `lightly_collapse/report/pages/templates`.

    Args:
        template: its file name.
        folder: further templates, which may extend the package's `base.html`.
        context: its variables; text is escaped, figures of `to_svg` are put in as they are.

    Returns:
        The page.

    Raises:
        jinja2.UndefinedError: if the template uses a variable that is not given.

    Examples:
        >>> render("base.html", title="A page").splitlines()[0]
        '<!doctype html>'
    """
    return _environment(folder).get_template(template).render(**context)
