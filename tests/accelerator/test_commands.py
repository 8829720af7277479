"""The commands and observers on the GPU: pretrain, measure, probe, export, tracker."""

import json

import pytest
import torch
from torch import nn

from lightly_collapse.cli import main
from lightly_collapse.export import to_torchvision
from lightly_collapse.report import measure
from lightly_collapse.tracking import CollapseTracker

SETTINGS = [
    *("--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.max_epochs", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--data", "Digits", "--data.batch_size", "64", "--data.train_images", "256"),
    *("--model.backbone.stem", "cifar", "--model.backbone.width", "8"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["SimCLR", "BYOL"])
def test_pretrained_on_the_gpu_and_measured_on_either_device(gpu, tmp_path, method, precision):
    run = tmp_path / "run"
    words = ["pretrain", "--model", method, *SETTINGS, "--trainer.precision", precision]
    words += ["--model.orthogonality.kind", "so", "--model.orthogonality.weight", "1e-3"]
    assert main([*words, "--output", str(run)]) == 0
    checkpoint = str(run / "last.ckpt")
    scalars = {}
    for device in ("cuda", "cpu"):
        output = tmp_path / device
        words = ["measure", "--checkpoint", checkpoint, "--data", "digits", "--device", device]
        assert main([*words, "--output", str(output)]) == 0
        report = json.loads(next(output.glob("*.json")).read_text())
        scalars[device] = report["layers"][-1]["scalars"]
    for name in ("effective_rank", "rankme", "participation_ratio"):
        assert scalars["cuda"][name] == pytest.approx(scalars["cpu"][name], rel=1e-2), name


def test_export_of_a_backbone_trained_on_the_gpu(gpu, tmp_path):
    words = ["pretrain", "--model", "SimCLR", *SETTINGS, "--output", str(tmp_path)]
    words[words.index("cifar")] = "imagenet"
    assert main(words) == 0
    export = to_torchvision(tmp_path / "last.ckpt", tmp_path / "backbone.pth")
    assert export.converted > 100


def test_two_runs_of_one_seed_end_with_the_same_weights(gpu, tmp_path):
    states = []
    for name in ("one", "other"):
        words = ["pretrain", "--model", "SimCLR", *SETTINGS, "--trainer.deterministic", "true"]
        assert main([*words, "--output", str(tmp_path / name)]) == 0
        path = tmp_path / name / "last.ckpt"
        states.append(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_probe(gpu, tmp_path):
    assert main(["pretrain", "--model", "SimCLR", *SETTINGS, "--output", str(tmp_path)]) == 0
    words = ["probe", "--checkpoint", str(tmp_path / "last.ckpt"), "--device", "cuda"]
    assert main(words) == 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_tracker_changes_nothing_and_reads_what_measure_reads(gpu, dtype):
    def trained(tracked):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 12))
        model.to(gpu)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        tracker = CollapseTracker(model, layers=("3",), every_n_steps=5) if tracked else None
        x = torch.randn(10, 128, 16, generator=torch.Generator().manual_seed(1)).to(gpu)
        for batch in x:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                loss = model(batch).float().square().mean()
            loss.backward()
            optimizer.step()
            if tracker:
                tracker.step()
        readings = dict(tracker.readings) if tracker else {}
        if tracker:
            tracker.close()
        return model, readings, x

    plain, _, _ = trained(False)
    model, readings, x = trained(True)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert 1 < readings["collapse/3/effective_rank"] <= 12
    report = measure(model, [x[0]], lid_k=10)
    assert report.output.dimensions == 12
