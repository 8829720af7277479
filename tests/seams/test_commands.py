"""The commands on checkpoints of pretrain and of other programs: what was trained is measured."""

import json

import pytest
import torch

from lightly_collapse.cli import main
from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.io.image_batches import digits_loader
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO
from lightly_collapse.pretrain.methods import SimCLR
from lightly_collapse.report import measure
from tests.seams.checkpoint_forms import FORMS


def spectrum(folder):
    return json.loads((folder / "measure.json").read_text())["layers"][0]["spectrum"]


def test_measure_and_compare_read_the_trained_weights(tmp_path, capsys):
    torch.manual_seed(0)
    method = SimCLR(backbone=BackboneSettings("resnet18", stem="cifar", width=4))
    backbone = method.backbone.eval()
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    paths = {"run": tmp_path / "last.ckpt", "moco": FORMS["moco"](backbone, tmp_path)}
    wanted = measure(backbone, digits_loader(16, 64, 80), lid_k=5).output.spectrum
    common = ["--data", "digits", "--limit", "80", "--image-size", "16", "--lid-k", "5"]
    for name, path in paths.items():
        words = ["--arch", "resnet18", "--checkpoint", str(path), "--output", str(tmp_path / name)]
        assert main(["measure", *common, *words]) == 0
        assert spectrum(tmp_path / name) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    reports = [str(tmp_path / name / "measure.json") for name in paths]
    assert main(["compare", *reports, "--output", str(tmp_path / "both")]) == 0
    words = ["--arch", "resnet50", "--checkpoint", str(paths["run"]), "--output", str(tmp_path)]
    capsys.readouterr()
    assert main(["measure", *common, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is of the architecture resnet18, not resnet50; leave arch out" in line


def test_probe_reads_any_checkpoint_of_pretrain(tmp_path):
    torch.manual_seed(0)
    method = SimCLR(backbone=BackboneSettings("resnet18", stem="cifar", width=4))
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    words = ["--checkpoint", str(tmp_path / "last.ckpt"), "--data", "digits"]
    assert main(["probe", *words, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "probe.json").is_file()
