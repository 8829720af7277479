"""From photographs to AP, as detection/README.md has it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from detection.random_boxes import main as random_boxes
from detection.train_torchvision import main as fine_tune
from lightly_collapse.cli import main as lightly_collapse
from tests.detection.conftest import TINY


@pytest.mark.filterwarnings("ignore")
def test_from_photographs_to_ap(digits_root, tmp_path, request, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    root = request.config.rootpath
    checkpoint, weights, run = (tmp_path / name for name in ("so.ckpt", "so.pkl", "run"))
    sizes = ["--epochs", "1", "--batch-size", "5", "--size", "32", "--short-side", "48"]
    subprocess.run(
        [
            *(sys.executable, "-m", "detection.pretrain_photographs", "--root", str(digits_root)),
            *("--orthogonality", "1e-3", "--output", str(checkpoint), *sizes),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    export = ["export", "--checkpoint", str(checkpoint), "--output", str(weights)]
    assert lightly_collapse(export) == 0
    assert "ResNet-18, found under 'backbone.'" in capsys.readouterr().out
    arguments = ["--config-file", str(root / "configs" / "detection" / "small.yaml")]
    options = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(run)]
    assert fine_tune([*arguments, "--dataset-root", str(digits_root), *TINY, *options]) == 0
    assert json.loads((run / "result.json").read_text())["weights"] == str(weights)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(name.startswith("projection_head.") for name in state)


def test_random_boxes_find_next_to_nothing(digits_root, monkeypatch, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    monkeypatch.setattr(sys, "argv", ["random_boxes", "--root", str(digits_root), "--seeds", "0"])
    random_boxes()
    score = float(capsys.readouterr().out.split("AP50 ")[1])
    assert 0 <= score < 30
