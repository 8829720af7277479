"""Average precision against cases that can be counted by hand."""

from pathlib import Path

import pytest

from detection.average_precision import Prediction, average_precision
from detection.photographs import Box, Dataset, Photograph
from detection.results import read_losses, read_predictions, write_result

pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")


def dataset(*boxes_of_images):
    return Dataset(
        "test",
        tuple(
            Photograph(f"i{i}", Path(f"i{i}.jpg"), 100, 100, tuple(boxes))
            for i, boxes in enumerate(boxes_of_images)
        ),
        (),
    )


A = Box("a", (10, 10, 50, 50))
B = Box("b", (60, 60, 90, 90))


def test_all_found_and_none():
    data = dataset([A, B], [A])
    perfect = [
        Prediction("i0", [list(A.corners), list(B.corners)], [0.9, 0.8], [0, 1]),
        Prediction("i1", [list(A.corners)], [0.7], [0]),
    ]
    scores = average_precision(data, perfect, ["a", "b"])
    assert [scores[k] for k in ("AP", "AP50", "AP75")] == pytest.approx([100, 100, 100])
    assert scores["curves"]["a"].precision == pytest.approx([1.0] * 101)
    empty = average_precision(data, [], ["a", "b"])
    assert [empty[k] for k in ("AP", "AP50", "AP75")] == [0, 0, 0]


def test_one_of_two_found_after_a_false_alarm():
    # Ranked: wrong, right. Precision 1/2 up to recall 1/2, 0 beyond: 51 of COCO's 101 recalls.
    found = Prediction("i0", [[0, 0, 5, 5], list(A.corners)], [0.9, 0.8], [0, 0])
    scores = average_precision(dataset([A, Box("a", (60, 10, 90, 40))]), [found], ["a"])
    assert scores["AP50"] == pytest.approx(100 * 0.5 * 51 / 101)


def test_overlap_between_a_half_and_three_quarters():
    # 40x40 against 40x25 inside it: overlap 0.625, so right at 0.5, 0.55 and 0.6 of ten.
    found = Prediction("i0", [[10, 10, 50, 35]], [0.9], [0])
    scores = average_precision(dataset([A]), [found], ["a"])
    assert scores["AP50"] == pytest.approx(100)
    assert scores["AP75"] == 0
    assert scores["AP"] == pytest.approx(30)


def test_difficult_objects_neither_asked_for_nor_counted_against():
    difficult = Box("a", (60, 10, 90, 40), is_difficult=True)
    data = dataset([A, difficult])
    without = average_precision(data, [Prediction("i0", [list(A.corners)], [0.5], [0])], ["a"])
    both = [Prediction("i0", [list(difficult.corners), list(A.corners)], [0.9, 0.5], [0, 0])]
    assert without["AP50"] == pytest.approx(100)
    assert average_precision(data, both, ["a"])["AP50"] == pytest.approx(100)


def test_result_file(tmp_path):
    data = dataset([A])
    predictions = [Prediction("i0", [list(A.corners)], [0.9], [0])]
    result = write_result(tmp_path, data, predictions, ["a"], {"seed": 3})
    assert result["AP50"] == pytest.approx(100)
    assert result["AP50_by_class"] == {"a": pytest.approx(100)}
    assert (result["seed"], result["images"], result["boxes"]) == (3, 1, 1)
    assert read_predictions(tmp_path) == predictions


def test_losses_of_a_run_that_was_killed_and_resumed(tmp_path):
    lines = [
        '{"iteration": 19, "total_loss": 2.0}',
        '{"iteration": 39, "total_loss": 9.0}',
        '{"iteration": 59, "tot',
        '{"iteration": 39, "total_loss": 1.5}',
        '{"iteration": 59, "total_loss": 1.0}',
        '{"iteration": 59, "data_time": 0.1}',
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert read_losses(tmp_path) == [(20, 2.0), (40, 1.5), (60, 1.0)]
