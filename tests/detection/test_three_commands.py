"""From photographs to AP, as detection/README.md has it."""

import json
import sys

import pytest

from detection.random_boxes import main as random_boxes
from detection.train_torchvision import main as fine_tune
from lightly_collapse.cli import main as lightly_collapse
from tests.detection.conftest import TINY


@pytest.mark.filterwarnings("ignore")
def test_from_photographs_to_ap(digits_root, tmp_path, request, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    root = request.config.rootpath
    run, weights, tuned = (tmp_path / name for name in ("pretrain", "so.pkl", "tuned"))
    checkpoint = run / "last.ckpt"
    words = ["pretrain", "--config", "photographs-resnet18-simclr-so", "--output", str(run)]
    words += ["--data.root", str(digits_root / "JPEGImages"), "--data.batch_size", "5"]
    words += ["--data.names", str(digits_root / "ImageSets" / "Main" / "train.txt")]
    words += ["--data.image_size", "32", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    words += ["--model.optimizer.warmup_epochs", "0"]
    assert lightly_collapse(words) == 0
    export = ["export", "--checkpoint", str(checkpoint), "--output", str(weights)]
    assert lightly_collapse(export) == 0
    assert "ResNet-18, found under 'backbone.'" in capsys.readouterr().out
    arguments = ["--config-file", str(root / "configs" / "detection" / "small.yaml")]
    options = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tuned)]
    assert fine_tune([*arguments, "--dataset-root", str(digits_root), *TINY, *options]) == 0
    assert json.loads((tuned / "result.json").read_text())["weights"] == str(weights)


def test_random_boxes_find_next_to_nothing(digits_root, monkeypatch, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    monkeypatch.setattr(sys, "argv", ["random_boxes", "--root", str(digits_root), "--seeds", "0"])
    random_boxes()
    score = float(capsys.readouterr().out.split("AP50 ")[1].split(",")[0])
    assert 0 <= score < 30
