"""What stands in an HTML page, for the tests of all pages."""

import re
from html.parser import HTMLParser

from typing_extensions import override


class _PageReader(HTMLParser):
    """What a page would load, the kinds of its elements, and its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.charts = 0
        self.images = 0
        self.style = ""
        self._in_style = False

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [
            f"<{tag} {name}={value}>"
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data", "action")
            and tag != "a"
            and not (value or "").startswith(("#", "data:"))
        ]
        self.charts += tag == "figure" and "chart" in (given.get("class") or "").split()
        self.images += tag == "svg"
        self._in_style = tag == "style"

    @override
    def handle_data(self, data: str) -> None:
        self.style += data * self._in_style


def assert_self_contained(page: str) -> None:
    """Assert that a page loads nothing: no script, style, image or font from elsewhere."""
    reader = _read_page(page)
    assert not reader.loaded
    assert not re.findall(r"@import|url\((?!#|data:)", reader.style)
    assert "default-src 'none'" in page


def count_charts(page: str) -> int:
    """How many charts a page draws."""
    return _read_page(page).charts


def count_images(page: str) -> int:
    """How many SVG images stand in a page."""
    return _read_page(page).images


def _read_page(page: str) -> _PageReader:
    reader = _PageReader()
    reader.feed(page)
    return reader
