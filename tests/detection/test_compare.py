"""The comparison: what is done is not done again, the table is right, the page is whole."""

import json
import re

import pytest
import torchvision
from PIL import Image

from detection.compare import main, plan
from detection.statistics import mean_and_interval, summarize, verdicts, warnings
from lightly_collapse.export import to_detectron2
from tests.detection.conftest import TINY

pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")


@pytest.fixture
def command(digits_root, tmp_path):
    to_detectron2(torchvision.models.resnet18(), tmp_path / "simclr-0.pkl")

    def build(*backbones, output="out", seeds=("0",), options=()):
        return [
            *("--config-file", "configs/detection/small.yaml", "--num-gpus", "0"),
            *("--dataset-root", str(digits_root), "--output", str(tmp_path / output)),
            *("--seeds", *seeds, "--backbone", *backbones, "--trainer", "torchvision"),
            *(*TINY, "SOLVER.MAX_ITER", "2", *options),
        ]

    return build


def test_runs_once_and_shows_it(command, tmp_path, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    backbones = ("random", f"simclr={tmp_path}/simclr-{{seed}}.pkl")
    assert main(command(*backbones)) == 0
    capsys.readouterr()
    result = tmp_path / "out" / "simclr-seed0" / "result.json"
    before = result.stat().st_mtime_ns
    assert main(command(*backbones)) == 0
    printed = capsys.readouterr().out
    assert printed.count("already there") == 2
    assert result.stat().st_mtime_ns == before
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].startswith("| backbone | seeds | AP | AP50 | AP75 |")
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| random", "| simclr"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count('src="data:image/png;base64,') == 3
    for name in ("detections", "precision_recall", "loss"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 300
    # Other settings in the same folder are refused, not mixed in.
    assert main(command("random", options=("SOLVER.BASE_LR", "0.02"))) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_failing_run_is_one_line(command, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert main(command("random", options=("MODEL.RESNETS.NORM", "GN"))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "random-seed0 failed" in captured.err
    assert "must be BN, SyncBN, naiveSyncBN or FrozenBN" in captured.err


def test_unknown_test_set_is_found_before_any_run(command, tmp_path, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert main(command("random", options=("DATASETS.TEST", "('val',)"))) == 2
    assert "split 'val'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_plan(tmp_path):
    (tmp_path / "a-1.pkl").write_bytes(b"")
    runs = plan(["random", f"a={tmp_path}/a-{{seed}}.pkl"], [1], tmp_path)
    assert [(run.name, run.seed, run.folder.name) for run in runs] == [
        ("random", 1, "random-seed1"),
        ("a", 1, "a-seed1"),
    ]
    assert runs[1].weights == f"{tmp_path}/a-1.pkl"
    for backbones, seeds, why in (
        (["a"], [0], "must be 'random' or NAME=FILE"),
        (["a/b=x"], [0], "plain word"),
        ([f"a={tmp_path}/a-{{seed}}.pkl"], [2], "no file"),
        (["random", "random"], [0], "come once"),
        (["random"], [0, 0], "come once"),
    ):
        with pytest.raises(ValueError, match=why):
            plan(backbones, seeds, tmp_path)


def result(name, seed, ap, **more):
    scores = {"AP": ap, "AP50": ap and 2 * ap, "AP75": 0.0, "AP50_by_class": {"a": ap}}
    return {"name": name, "seed": seed, "weights": "w.pkl", **scores, **more}


def test_mean_and_interval_of_student():
    # The quantile of Student's t with 2 degrees of freedom is 4.302653 at 0.975.
    rows = summarize([result("random", seed, ap) for seed, ap in enumerate((10.0, 14.0, 12.0))])
    assert rows[0]["AP"] == pytest.approx((12, 4.302653 * 2 / 3**0.5), rel=1e-6)
    assert rows[0]["AP50 a"] == rows[0]["AP"]
    assert mean_and_interval([3.0]) == (3.0, None)
    assert mean_and_interval([3.0, None]) == (None, None)
    assert json.dumps(rows)


def test_told_apart_or_not():
    apart = [result("a", seed, 10.0 + seed) for seed in range(3)]
    apart += [result("b", seed, 15.0 + seed + 0.1 * (seed == 1)) for seed in range(3)]
    assert verdicts(apart)[0].startswith("b is above a (AP50 +10.1")
    alike = [result("a", seed, 10.0 + 3 * seed) for seed in range(3)]
    alike += [result("b", seed, 16.0 - 2 * seed) for seed in range(3)]
    assert verdicts(alike)[0].startswith("b and a cannot be told apart")
    assert verdicts([result("a", 0, 1.0), result("b", 0, 2.0)]) == []


def test_warnings_and_missing_scores():
    partial = result("a", 0, None, backbone_tensors=[3, 100])
    lines = warnings([partial])
    assert "w.pkl gave 3 of the backbone's 100 tensors" in lines[0]
    assert "no object that is not difficult" in lines[1]
    assert summarize([partial])[0]["AP"] == (None, None)


def test_scores_by_size_of_masks_and_of_voc_are_columns():
    sizes = {"AP small": 1.0, "AP medium": 2.0, "AP large": None}
    voc = {"AP": 3.0, "AP50": 4.0, "AP75": 5.0, "metric": "VOC 2007, 11 points"}
    masks = {"AP": 6.0, "AP50": 7.0, "AP75": 8.0}
    (row,) = summarize([result("a", 0, 9.0, **sizes, masks=masks, pascal_voc=voc)])
    assert row["VOC07 AP50"] == (4.0, None)
    assert row["mask AP"] == (6.0, None)
    assert row["AP medium"] == (2.0, None)


def test_backbones_are_compared_at_the_same_learning_rate():
    runs = [
        result(f"{name} lr {rate}", seed, 10 * (name == "b") + seed, learning_rate=rate)
        for name in "ab"
        for rate in (0.01, 0.02)
        for seed in (0, 1)
    ]
    assert [sentence.split(" (")[0] for sentence in verdicts(runs)] == [
        "b lr 0.01 is above a lr 0.01",
        "b lr 0.02 is above a lr 0.02",
    ]


def test_several_learning_rates_are_rows(tmp_path):
    runs = plan(["random"], [0], tmp_path, [0.01, 0.02])
    assert [(run.name, run.learning_rate) for run in runs] == [
        ("random lr 0.01", 0.01),
        ("random lr 0.02", 0.02),
    ]
    assert len({run.folder for run in runs}) == 2
