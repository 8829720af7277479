"""The file of spectra over training."""

import itertools
import json

import pytest

from lightly_collapse.io.spectra import SpectraFile, TrainingSpectra, spread_indices


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "collapse-spectra.json"


def test_what_is_written_is_read(path):
    file = SpectraFile(path, "epoch")
    file.add(0, {"backbone": [2.0, 1.0], "head": [1.5]})
    file.add(1, {"backbone": [3.0, 0.123456789]})
    found = TrainingSpectra.load(path)
    assert (found.key, found.steps) == ("epoch", [0, 1])
    assert found.spectra == [
        {"backbone": {0: 2.0, 1: 1.0}, "head": {0: 1.5}},
        {"backbone": {0: 3.0, 1: 0.12346}},
    ]


def test_long_training_is_covered_evenly_and_ends_with_the_newest(path):
    file = SpectraFile(path, "step")
    for step in range(1001):
        file.add(step, {"a": [1.0 + step]}, write=step == 1000 or step % 97 == 0)
        if path.exists() and step % 97 == 0:
            assert TrainingSpectra.load(path).steps[-1] == step
    steps = TrainingSpectra.load(path).steps
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert len(steps) <= 201
    gaps = [b - a for a, b in itertools.pairwise(steps[:-1])]
    assert set(gaps) == {8}


def test_wide_layers_are_thinned(path):
    SpectraFile(path, "step").add(1, {"a": [float(4096 - i) for i in range(4096)]})
    (spectra,) = TrainingSpectra.load(path).spectra
    assert list(spectra["a"]) == spread_indices(4096)
    assert spectra["a"][4095] == 1.0


def test_resumed_training_keeps_the_rows_before_it(path):
    file = SpectraFile(path, "epoch")
    for epoch in range(4):
        file.add(epoch, {"a": [1.0 + epoch]})
    again = SpectraFile(path, "epoch")
    again.resume(2)
    again.add(2, {"a": [9.0]})
    found = TrainingSpectra.load(path)
    assert found.steps == [0, 1, 2]
    assert found.spectra[2] == {"a": {0: 9.0}}


def test_new_training_replaces_the_file(path):
    SpectraFile(path, "epoch").add(7, {"a": [1.0]})
    again = SpectraFile(path, "epoch")
    again.resume(0)
    again.add(0, {"a": [1.0]})
    assert TrainingSpectra.load(path).steps == [0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "another"}', "\x00", "nan"])
def test_other_files_are_refused_and_do_not_stop_a_resumed_training(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"collapse-spectra\.json must hold spectra"):
        TrainingSpectra.load(path)
    file = SpectraFile(path, "epoch")
    file.resume(3)
    file.add(3, {"a": [1.0]})
    assert TrainingSpectra.load(path).steps == [3]


def test_broken_rows_are_refused(path):
    SpectraFile(path, "epoch").add(0, {"a": [2.0, 1.0]})
    content = json.loads(path.read_text())
    content["rows"][0]["layers"]["a"]["value"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must hold spectra"):
        TrainingSpectra.load(path)
