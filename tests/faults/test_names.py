"""Names that a page, a table or a spreadsheet could take for something else."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from lightly_collapse.cli import main
from lightly_collapse.report import CollapseReport
from lightly_collapse.tracking.table import ReadingsTable

NAMES = [
    "<script>alert(1)</script>",
    "a,b",
    "two\nlines",
    "costs $5 or $6",
    "$\\frac{1}{$",
    "größer → 模型 🙂",
    "{{ 7 * 7 }} {% raw %}",
    "[red]markup[/red] [/]",
    "'\"&amp;",
    "=cmd|' /C calc'!A0",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_pages_and_reports_keep_a_name(rows, name, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["measure", "--embeddings", str(rows), "--name", name, "--output", str(output)]
    assert main([*words, "--lid-k", "5"]) == 0
    assert json.loads((output / "measure.json").read_text())["name"] == name
    page = (output / "measure.html").read_text()
    assert "<script>alert" not in page
    assert "49" not in page.partition("</h1>")[0]
    report = str(output / "measure.json")
    assert main(["compare", report, report, "--output", str(tmp_path / "both")]) == 0
    assert "<script>alert" not in (tmp_path / "both" / "compare.html").read_text()
    out = capsys.readouterr().out
    for part in name.split("\n"):
        assert part in out


def test_a_file_whose_name_is_no_text(tmp_path, capsys):
    path = os.fsdecode(os.fsencode(tmp_path / "rows") + b"\xff.npy")
    np.save(path, np.random.default_rng(0).normal(size=(60, 4)))
    output = os.fsdecode(os.fsencode(tmp_path / "out") + b"\xfe")
    assert main(["measure", "--embeddings", path, "--lid-k", "5", "--output", output]) == 0
    assert "rows\\udcff.npy" in Path(output, "measure.html").read_text()
    assert CollapseReport.load(Path(output, "measure.json")).source["embeddings"] == path
    assert "out\\udcfe" in capsys.readouterr().out


def test_a_table_keeps_names_and_no_cell_is_a_formula(tmp_path):
    path = tmp_path / "collapse.csv"
    table = ReadingsTable(path, "step")
    formulas = ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1"]
    row = {"step": 1, **dict.fromkeys([*NAMES, *formulas], 0.5), "text": "=1+1", "loss": -0.25}
    table.add(row)
    with path.open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert float(read["loss"]) == -0.25
    for cell in [*read, *read.values()]:
        assert cell[0] not in "=+@\t\r", cell
        assert cell[0] != "-" or float(cell) < 0
    for name in (n for n in NAMES if n[0] != "="):
        assert float(read[name]) == 0.5
    again = ReadingsTable(path, "step")
    again.resume(2)
    again.add({**row, "step": 2})
    with path.open(newline="") as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["1", "2"]
