"""JSON that was edited by hand is refused with the name of the field."""

import json
from typing import Any

import pytest

from lightly_collapse.io.records import read_json, read_value
from lightly_collapse.report.records import LayerRecord, ModelRecord, WeightRecord

LAYER = LayerRecord(
    "output", 4, {"rows": 20.0, "effective_rank": 2.0}, {}, [2.0, 1.0], [1.5],
    intervals={"effective_rank": [1.0, 3.0]},
)  # fmt: skip
WEIGHT = WeightRecord("w", (4, 3), [1.0, 0.5, 0.1], 0.2, 2.0, None)
REPORT = ModelRecord(
    "model", [LAYER], [WEIGHT], {"collapse_rtol": 0.01, "seed": 0, "mean": [0.0, 0.0, 0.0]},
    {"model": "resnet18"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("name",), 3, "name must be text, got 3"),
        (("layers",), [], "it has no layer"),
        (("layers",), {}, "layers must be a list, got {}"),
        (("layers", 0), None, "layers[0] must be an object, got null"),
        (("layers", 0, "dimensions"), 0, "layers[0].dimensions must be at least 1, got 0"),
        (("layers", 0, "dimensions"), True, "dimensions must be a whole number, got True"),
        (("layers", 0, "dimensions"), 10**400, "dimensions must be below 2^63, got 1000000000"),
        (("layers", 0, "scalars", "rows"), "20", "scalars.rows must be a finite number, got '20'"),
        (("layers", 0, "spectrum"), [1, 2], "layers[0].spectrum must be in descending order"),
        (("layers", 0, "spectrum", 1), -1, "layers[0].spectrum[1] must be at least 0, got -1"),
        (("layers", 0, "intervals", "effective_rank"), [1], "must be the lower and the upper end"),
        (("layers", 0, "intervals", "nosuch"), [1, 2], "must be the lower and the upper end"),
        (("layers", 0, "nosuch"), 1, "layers[0] has an unknown field, 'nosuch'"),
        (("weights", 0, "shape"), [4], "weights[0].shape must be a list of 2, got [4]"),
        (("weights", 0, "shape", 0), 0, "weights[0].shape[0] must be at least 1, got 0"),
        (("weights", 0, "normalized_eigenvalues"), [], "must not be empty"),
        (("settings",), {}, "settings.collapse_rtol is missing"),
        (("settings", "collapse_rtol"), "x", "settings.collapse_rtol must be a finite number"),
        (("settings", "collapse_rtol"), 2, "settings.collapse_rtol must be between 0 and 1"),
        (("settings", "seed"), -1, "settings.seed must be between 0 and 4294967295, got -1"),
        (("settings", "mean"), [0.1], "settings.mean must be a list of 3, got [0.1]"),
        (("source",), [], "source must be an object, got []"),
        (("source", "model"), 5, "source.model must be text, got 5"),
        (("accuracy",), {"knn": None}, "accuracy.knn must be a finite number, got null"),
        (("notes",), "x", "notes must be a list, got 'x'"),
    ],
)
def test_an_edited_report_is_refused(tmp_path, place, value, said):
    path = tmp_path / "measure.json"
    REPORT.save(path)
    assert ModelRecord.load(path) == REPORT
    content = json.loads(path.read_text())
    node: Any = content
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must be a report written by") as raised:
        ModelRecord.load(path)
    assert said in str(raised.value)


def test_what_is_missing_is_named(tmp_path):
    path = tmp_path / "measure.json"
    REPORT.save(path)
    content = json.loads(path.read_text())
    del content["layers"][0]["spectrum"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"layers\[0\]\.spectrum is missing"):
        ModelRecord.load(path)


@pytest.mark.parametrize("text", ['{"a": NaN}', "[Infinity]", "[" * 100_000, "{", "\ud800"])
def test_what_is_no_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"\w"):
        read_json(path)


def test_a_number_that_only_json_can_write():
    with pytest.raises(ValueError, match="x must be a finite number"):
        read_value(float, json.loads("1e999"), "x")
    with pytest.raises(ValueError, match="x must be a finite number"):
        read_value(float, 10**400, "x")
