"""The comparison: what is done is not done again, the table is right, the page is whole."""

import json
import re

import pytest
import torchvision
from PIL import Image

from detection.compare import main, plan, summarize
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
    assert [line.split(" | ")[0] for line in table[2:]] == ["| random", "| simclr"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count('src="data:image/png;base64,') == 3
    for name in ("detections", "precision_recall", "loss"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 300
    # Other settings in the same folder are refused, not mixed in.
    assert main(command("random", options=("SOLVER.BASE_LR", "0.02"))) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_failing_run_is_one_line(command, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert main(command("random", options=("MODEL.RESNETS.NORM", "GN"))) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "random-seed0 failed" in captured.err
    assert "must be BN, SyncBN or FrozenBN" in captured.err


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


def test_mean_and_deviation(tmp_path):
    runs = plan(["random"], [0, 1], tmp_path)
    results = [
        {"AP": ap, "AP50": 2 * ap, "AP75": 0.0, "AP50_by_class": {"a": ap}} for ap in (10.0, 14.0)
    ]
    (row,) = summarize(runs, results)
    assert row["AP"] == pytest.approx((12, 8**0.5))
    assert row["AP50"] == pytest.approx((24, 32**0.5))
    assert row["AP50 a"] == pytest.approx((12, 8**0.5))
    assert json.dumps(row)
