import jinja2
import pytest

from lightly_collapse.report.pages.figures import figure, to_svg
from lightly_collapse.report.pages.shell import render


def test_text_is_escaped_and_a_missing_variable_is_an_error():
    assert "<title>&lt;b&gt;</title>" in render("base.html", title="<b>")
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("base.html")


def test_svg_takes_the_colour_of_the_page_and_says_what_it_shows():
    with figure() as (fig, axes):
        axes.plot([1, 2], [3, 4])
        axes.set_xlabel("x")
    svg = to_svg(fig, 'rank & "spectrum"')
    assert svg.startswith('<svg role="img" aria-label="rank &amp; &#34;spectrum&#34;"')
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_svg_of_the_same_data_is_the_same_text():
    def draw():
        with figure() as (fig, axes):
            axes.plot([1, 2], [3, 4])
        return to_svg(fig, "line")

    assert draw() == draw()
