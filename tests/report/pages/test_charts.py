"""Charts as data: what is drawn, what is saved, and what names can do."""

import json
import math
import re
from pathlib import Path

import pytest

from lightly_collapse.io.spectra import TrainingSpectra
from lightly_collapse.pretrain.sweep import COLUMNS
from lightly_collapse.report.glossary import GLOSSARY, HELP
from lightly_collapse.report.pages.charts import (
    Chart,
    heat_map,
    histogram,
    line_chart,
    spectra,
    spectra_over_training,
)
from lightly_collapse.report.pages.shell import MeasureLinks


def rows(chart: Chart) -> list[dict[str, float | None]]:
    values: list[dict[str, float | None]] = chart.spec["data"]["values"]
    return values


def test_lines_have_their_values_and_none_where_a_logarithm_has_none():
    chart = spectra({"a": [1.0, 0.5, 0.0], "b": [1.0]}, "value", "Two lines", 0.01)
    assert [(s.key, s.name) for s in chart.series] == [("s0", "a"), ("s1", "b")]
    assert rows(chart) == [
        {"x": 1, "s0": 1.0, "s1": 1.0},
        {"x": 2, "s0": 0.5, "s1": None},
        {"x": 3, "s0": None, "s1": None},
    ]
    assert chart.columns == [("x", "index, largest first"), ("s0", "a"), ("s1", "b")]


def test_wide_spectra_are_thinned_and_keep_the_first_and_the_last():
    values = [1 / (i + 1) for i in range(2048)]
    chart = spectra({"wide": values, "narrow": values[:300]}, "value", "Two lines")
    index = [row["x"] for row in rows(chart)]
    assert index[:64] == list(range(1, 65))
    assert index[-1] == 2048
    assert 300 in index
    assert len(index) < 300
    assert all(row["s0"] == float(f"{1 / row['x']:.5g}") for row in rows(chart))


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [0.0, 0.0]}, {"a": [math.nan]}])
def test_nothing_to_draw_is_no_chart(lines):
    assert spectra(lines, "value", "None") is None


def test_json_has_no_nan():
    chart = line_chart([1, 2], {"a": [math.inf, 1.0]}, "x", "y", "A line")
    json.dumps(chart.content, allow_nan=False)
    assert rows(chart)[0]["s0"] is None


def test_bands_stand_beside_their_line():
    chart = line_chart(
        [1, 2], {"a": [1.0, 0.5]}, "x", "y", "A band", log=True, least=1e-3,
        bands={"a": ([0.0, 0.2], [1.5, 0.9])},
    )  # fmt: skip
    assert rows(chart)[0] == {"x": 1, "s0": 1.0, "s0low": 1e-3, "s0high": 1.5}


def test_names_are_data_only():
    """No expression, field or title of the specification holds a name."""
    name = "layer.1['x'] </script> \" + datum"
    charts = [
        spectra({name: [1.0, 0.1]}, "value", "A line"),
        histogram({name: [1.0, 2.0, 3.0]}, "LID", {name: 1.8}, "Bars"),
        heat_map({name: [1.0, 0.1]}, "value", "Rows"),
    ]
    for chart in charts:
        spec = json.loads(json.dumps(chart.spec))
        spec.pop("data")
        for transform in spec.get("transform", []):
            transform.pop("from", None)  # the names of a heat map's rows, as data
        assert 'datum"' not in json.dumps(spec)
        assert "layer.1" not in json.dumps(spec)


def test_histogram_gives_shares_and_keeps_what_lies_beyond_the_last_bin():
    values = [*range(1000), 1e6]
    chart = histogram({"a": values}, "LID", {"a": 12.345}, "Bars")
    assert chart.series[0].name == "a (12.35)"
    shares = [row["s0"] for row in rows(chart)]
    assert sum(shares) == pytest.approx(100, abs=0.01)
    assert all(row["x"] < 1100 for row in rows(chart))


def test_heat_map_has_a_cell_for_every_share_of_a_row():
    chart = heat_map({"long": [1 / (i + 1) for i in range(640)], "short": [1.0, 0.5]}, "v", "Rows")
    cells = [row for row in rows(chart) if row["row"] == 0]
    assert [cell["index"] for cell in cells] == list(range(1, 641, 10))
    assert [row["value"] for row in rows(chart) if row["row"] == 1] == [1.0, 0.5]
    assert chart.labels == {"row": ["long", "short"]}


def test_slider_goes_through_the_steps_of_a_training():
    training = TrainingSpectra(
        "epoch", [0, 4], [{"a": {0: 4.0, 1: 2.0}}, {"a": {0: 2.0, 1: 0.5}, "b": {0: 1.0}}]
    )
    chart = spectra_over_training(training, "Over training")
    assert rows(chart) == [
        {"x": 1, "at": 0, "s0": 1.0, "s1": None},
        {"x": 2, "at": 0, "s0": 0.5, "s1": None},
        {"x": 1, "at": 1, "s0": 1.0, "s1": 1.0},
        {"x": 2, "at": 1, "s0": 0.25, "s1": None},
    ]
    assert chart.labels == {"at": ["0", "4"]}
    assert chart.columns[0] == ("at", "epoch")


def test_training_of_one_step_has_no_slider():
    assert spectra_over_training(TrainingSpectra("step", [5], [{"a": {0: 1.0}}]), "One") is None


def test_help_is_that_of_the_guide():
    guide = Path(__file__).parents[3] / "docs" / "guide" / "measures.md"
    if not guide.is_file():
        pytest.skip("not run from a checkout")
    text = guide.read_text(encoding="utf-8").replace("`", "")
    sections = {
        title: " ".join(paragraph.split())
        for title, paragraph in re.findall(r"^### (.*)\n\n((?:.+\n)+)", text, re.MULTILINE)
    }
    for name, help_text in HELP.items():
        assert sections[help_text.title] == help_text.text, name


def test_every_measure_of_the_tables_has_its_help():
    assert {*GLOSSARY, *COLUMNS} <= set(HELP)
    with pytest.raises(KeyError):
        MeasureLinks().link("no measure")
