"""The toy command: what it writes, that its numbers are those of the experiments, refusals."""

import json
import math
from functools import partial

import pytest

from lightly_collapse.cli import main
from lightly_collapse.theory import strong_augmentation_dynamics
from lightly_collapse.theory.questions import (
    collapse_that_helps,
    imbalance,
    normalization_and_bias,
    when_collapse_happens,
)
from lightly_collapse.theory.relu_layer import compare_relu_on_digits
from tests.page_reader import assert_self_contained, count_images


def _run(folder, *arguments):
    assert main(["toy", *arguments, "--output", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert_self_contained(page)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    text = (folder / "toy.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    return json.loads(text), page


def test_strong_augmentation(tmp_path, capsys):
    record, page = _run(
        tmp_path, "strong-augmentation", "--runs", "2", "--steps", "300", "--noise", "1"
    )
    run = strong_augmentation_dynamics(1.0, steps=300, record_every=10, seeds=[0, 1])
    for got, expected in zip(record["final_spectrum"], run.spectrum[-1].tolist(), strict=True):
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert "Noise 1 on the last 8 of 16 coordinates, 300 steps, 2 seeds" in page
    assert "Noise 1 on" in capsys.readouterr().out
    assert count_images(page) == 3


def test_implicit_regularization(tmp_path):
    record, page = _run(tmp_path, "implicit-regularization", "--runs", "1", "--steps", "200",
                        "--seed", "3")  # fmt: skip
    assert len(record["alignment"][0]) == 16
    assert "Two layers, 200 steps, 1 seed." in page
    assert count_images(page) == 3


def test_more_layers_and_relus(tmp_path):
    words = ["--runs", "1", "--steps", "50", "--layers", "3", "--relu"]
    record, page = _run(tmp_path, "implicit-regularization", *words)
    assert len(record["singular_values"]) == 3
    assert record["closed_form"][0] == [[]]
    assert "Three layers with ReLUs between them, 50 steps" in page
    assert count_images(page) == 3
    record, page = _run(tmp_path, "implicit-regularization", *words[:4], "--layers", "1")
    assert record["alignment"] is None
    assert count_images(page) == 2


@pytest.mark.slow
def test_digits(tmp_path, monkeypatch):
    monkeypatch.setattr("lightly_collapse.report.toy_training.compare_on_digits", _two_strengths)
    record, page = _run(tmp_path, "digits", "--steps", "50")
    assert [c["noise"] for c in record["comparisons"]] == [0.5, 1.0]
    assert len(record["comparisons"][0]["finite_time"]) == 64
    assert "InfoNCE, stopped" in page


def test_relu_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightly_collapse.report.toy_training.compare_relu_on_digits",
        partial(compare_relu_on_digits, [0.3, 0.6, 1.0], hidden=32, width=8),
    )
    record, page = _run(tmp_path, "relu-layer", "--steps", "20")
    assert [c["noise"] for c in record["comparisons"]] == [0.3, 0.6, 1.0]
    assert len(record["comparisons"][0]["last_layer"]) == 8
    assert "error: all trained, pixels" in page


def _two_strengths(**options):
    from lightly_collapse.theory.against_training import compare_on_digits  # noqa: PLC0415

    return compare_on_digits([0.5, 1.0], **options)


def test_when_collapse_happens():
    answer = when_collapse_happens()
    decays, ranks = answer.lines["predicted"]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 0
    # Trained encoders keep the predicted number of dimensions, give or take one at a border.
    tried, trained = answer.points["trained on samples"]
    for decay, found in zip(tried, trained, strict=True):
        nearest = min(range(len(decays)), key=lambda k: abs(math.log(decays[k] / decay)))
        assert abs(ranks[nearest] - found) <= 2


@pytest.mark.slow
def test_normalization_and_bias():
    answer = normalization_and_bias()
    plain = answer.lines["plain"][1]
    assert plain[0] > plain[-1] == 0
    for label, (_, ranks) in answer.lines.items():
        if label != "plain":
            assert len(set(ranks)) == 1  # weight decay changes nothing
            assert ranks[0] > 0
    assert "4.61 dimensions" in answer.sentence
    # What is trained on samples keeps as many dimensions, give or take one at the border.
    for label, (tried, kept) in answer.points.items():
        line = answer.lines[label.replace("trained, ", "") if "plain" in label
                            else f"normalized, {label.removeprefix('trained, ')}"]  # fmt: skip
        for decay, found in zip(tried, kept, strict=True):
            nearest = min(range(60), key=lambda k: abs(math.log(line[0][k] / decay)))
            assert abs(line[1][nearest] - found) <= 2


def test_collapse_that_helps():
    answer = collapse_that_helps()
    (_, accuracy), (_, kept) = answer.lines.values()
    assert max(accuracy) > accuracy[0] + 5
    assert kept[0] == 64
    assert kept[-1] == 32  # the half without the nuisance
    (tried, trained), (_, dimensions) = answer.points.values()
    strengths = answer.lines["dimensions left"][0]
    for strength, found, rank in zip(tried, trained, dimensions, strict=True):
        at = strengths.index(strength)
        assert found == pytest.approx(accuracy[at], abs=3)
        assert rank == pytest.approx(kept[at], abs=2)
    assert accuracy[-1] > accuracy[0] + 5


@pytest.mark.slow
def test_imbalance():
    answer = imbalance()
    (shares, kept), (_, variances) = answer.lines.values()
    assert shares[0] == pytest.approx(1e-3)
    assert variances[0] < 0.05
    assert kept[0] > 0.5
    assert kept == sorted(kept)
    for share, found in zip(*answer.points["kept, trained on samples"], strict=True):
        nearest = min(range(40), key=lambda k: abs(math.log(shares[k] / share)))
        assert found == pytest.approx(kept[nearest], abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["landscapes"], "experiment must be one of strong-augmentation"),
        (["strong-augmentation", "--runs", "0"], "runs must be between 1 and 1000, got 0"),
        (["strong-augmentation", "--steps", "0"], "steps must be between 1 and 10000000, got 0"),
        (["strong-augmentation", "--layers", "3"], "layers has no effect in the experiment"),
        (
            ["implicit-regularization", "--noise", "-1"],
            "noise must be between 0 and 1000000",
        ),
    ],
)
def test_refusals_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["toy", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
