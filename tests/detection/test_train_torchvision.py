"""Fine-tuning with torchvision: the weights arrive, runs resume exactly, bad input is one line."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detection.photographs import Photograph
from detection.results import RunRecord
from detection.torchvision.config import load_config
from detection.torchvision.examples import Examples, load_image
from detection.torchvision.model import build_model, freeze
from detection.torchvision.trainer import learning_rate, predict, train
from detection.torchvision.weights import load_weights
from detection.train_torchvision import main
from detection.voc import read_voc
from lightly_collapse.export import detectron2_state_dict, to_detectron2
from tests.detection.conftest import TINY

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "configs" / "detection" / "small.yaml"


def configure(*overrides):
    return load_config(SMALL, [*TINY, "MODEL.DEVICE", "cpu", *overrides])


def built(*overrides):
    """The detector with its weights, frozen as configured."""
    config = configure(*overrides)
    detector = build_model(config)
    with tempfile.TemporaryDirectory() as folder:
        load_weights(config, detector, RunRecord(Path(folder), [], False), partial=False)
    freeze(config, detector)
    return detector


def arguments(root, output, *overrides):
    paths = ["--config-file", str(SMALL), "--dataset-root", str(root)]
    return [*paths, "--num-gpus", "0", *TINY, "OUTPUT_DIR", str(output), *map(str, overrides)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("weights") / "r18.pkl"
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.3, 0.1)
    to_detectron2(model, path, pixel_mean=mean, pixel_std=std)
    return model.eval(), path, torchvision.transforms.Normalize(mean, std)


def test_pixels_and_features_are_those_of_pretraining(exported, tmp_path):
    model, path, normalize = exported
    detector = built("MODEL.WEIGHTS", str(path)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = load_image(Photograph("image", tmp_path / "image.png", 96, 72, ()))
    inputs = detector.transform([image])[0].tensors[0, :, :72, :96]
    wanted = normalize(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert (inputs - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    with torch.no_grad():
        theirs = model.maxpool(model.relu(model.bn1(model.conv1(wanted[None]))))
        features = detector.backbone.body(wanted[None])
        for level, name in zip("0123", ("layer1", "layer2", "layer3", "layer4"), strict=True):
            theirs = getattr(model, name)(theirs)
            assert (features[level] - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_freezing(exported):
    _, path, _ = exported
    body = built("MODEL.WEIGHTS", str(path), "MODEL.BACKBONE.FREEZE_AT", "2").backbone.body
    assert isinstance(body.bn1, FrozenBatchNorm2d)
    assert isinstance(body.layer1[0].bn1, FrozenBatchNorm2d)
    assert isinstance(body.layer2[0].bn1, nn.BatchNorm2d)
    assert not any(
        p.requires_grad for n in ("conv1", "layer1") for p in getattr(body, n).parameters()
    )
    assert all(parameter.requires_grad for parameter in body.layer2.parameters())
    frozen = built("MODEL.WEIGHTS", str(path), "MODEL.RESNETS.NORM", "FrozenBN")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.backbone.body.modules())
    assert torch.equal(frozen.backbone.body.bn1.running_var, exported[0].bn1.running_var)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["MODEL.RESNETS.DEPTH", "20"], "DEPTH must be 18, 34"),
        (["MODEL.RESNETS.RES2_OUT_CHANNELS", "256"], "must be 64 for depth 18"),
        (["MODEL.RESNETS.NORM", "GN"], "must be BN, SyncBN, naiveSyncBN or FrozenBN, got 'GN'"),
        (["MODEL.FPN.NORM", "GN"], "MODEL.FPN.NORM"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8]]"], "needs SIZES for 5 levels"),
    ],
)
def test_what_cannot_be_built(overrides, why):
    with pytest.raises(ValueError, match=why):
        build_model(configure(*overrides))


def test_learning_rate_is_detectron2_s():
    solver = configure()["SOLVER"] | {"WARMUP_ITERS": 10, "STEPS": [20, 30], "BASE_LR": 0.1}
    rates = [learning_rate(solver, i) for i in (0, 5, 10, 19, 20, 29, 30, 40)]
    factor = solver["WARMUP_FACTOR"]
    wanted = [0.1 * factor, 0.1 * (factor + 1) / 2, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates == pytest.approx(wanted)
    if pytest.importorskip("fvcore", reason="detectron2 is not installed"):
        from detectron2.solver import LRMultiplier, WarmupParamScheduler  # noqa: PLC0415
        from fvcore.common.param_scheduler import MultiStepParamScheduler  # noqa: PLC0415

        multiplier = WarmupParamScheduler(
            MultiStepParamScheduler([1, 0.1, 0.01], milestones=[20, 30], num_updates=50),
            factor,
            10 / 50,
        )
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = LRMultiplier(optimizer, multiplier, max_iter=50)
        for i in range(50):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate(solver, i))
            optimizer.step()
            scheduler.step()


def test_draws(digits_root):
    photographs = read_voc("train", digits_root).photographs
    classes = ("one", "seven", "zero")
    plain = Examples(photographs, classes, flip=False, seed=0)
    flipped = Examples(photographs, classes, flip=True, seed=0)
    mirrored = 0
    for n in range(20):
        (image, target), (other, others) = plain[n], flipped[n]
        assert torch.equal(image, plain[n][0])
        if not torch.equal(image, other):
            mirrored += 1
            assert torch.equal(image, other.flip(-1))
            boxes = others["boxes"].clone()
            boxes[:, [0, 2]] = 96 - boxes[:, [2, 0]]
            assert torch.equal(boxes, target["boxes"])
        assert (others["boxes"][:, 2:] > others["boxes"][:, :2]).all()
        assert target["labels"].min() >= 1
    assert 3 <= mirrored <= 17
    first = {plain[n][0].sum().item() for n in range(10)}
    assert len(first) == 10
    assert {plain[n][0].sum().item() for n in range(10, 20)} == first


def test_learns_and_reports(digits_root, tmp_path, exported, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    output = tmp_path / "run"
    options = ("MODEL.WEIGHTS", exported[1], "SOLVER.MAX_ITER", 40, "SOLVER.WARMUP_ITERS", 5)
    assert main(arguments(digits_root, output, *options)) == 0
    assert "AP50" in capsys.readouterr().out
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [19, 39]
    assert lines[1]["total_loss"] < lines[0]["total_loss"]
    result = json.loads((output / "result.json").read_text())
    assert result["trainer"] == "torchvision"
    assert result["classes"] == ["one", "seven", "zero"]
    assert (result["iterations"], result["images"]) == (40, 4)
    assert result["backbone_tensors"] == [100, 100]
    assert {"AP", "AP50", "AP75", "AP50_by_class", "seconds", "boxes"} <= set(result)
    assert [file.name for file in output.glob("*.pth")] == ["model_final.pth"]
    # The written configuration and checkpoint are enough to evaluate again.
    again = tmp_path / "again"
    evaluate = ["--config-file", str(output / "config.yaml"), "--eval-only"]
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(again)]
    assert main([*evaluate, *weights]) == 0
    second = json.loads((again / "result.json").read_text())
    assert second["AP50"] == result["AP50"]
    assert json.loads((again / "predictions.json").read_text()) == json.loads(
        (output / "predictions.json").read_text()
    )


def test_killed_and_resumed_ends_with_the_same_weights(digits_root, tmp_path):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    options = ("SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "3")
    killed = tmp_path / "killed"
    # So many iterations that it is still at it when its first checkpoint is seen.
    command = arguments(digits_root, killed, *options[2:], "SOLVER.MAX_ITER", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "detection.train_torchvision", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / "last_checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = torch.load(killed / (killed / "last_checkpoint").read_text())["iteration"]
    last = max(12, reached + 2)
    finals = []
    for folder, resume in ((killed, True), (tmp_path / "whole", False)):
        config = configure(*options, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(last))
        config["DATASETS"]["ROOT"] = str(digits_root)
        train(config, resume=resume)
        finals.append(torch.load(folder / "model_final.pth"))
    assert finals[0]["iteration"] == finals[1]["iteration"] == last
    assert finals[0]["seconds"] > 0
    for name, tensor in finals[1]["model"].items():
        assert torch.equal(finals[0]["model"][name], tensor), name
    logs = [
        [json.loads(line) for line in (f / "metrics.json").read_text().splitlines()]
        for f in (killed, tmp_path / "whole")
    ]
    assert [entry["iteration"] for entry in logs[0]] == [entry["iteration"] for entry in logs[1]]


def test_predictions_are_in_pixels_of_the_original(digits_root):
    dataset = read_voc("test", digits_root)
    detector = build_model(configure("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"))
    boxes = [box for p in predict(detector, dataset, torch.device("cpu")) for box in p.boxes]
    assert boxes
    assert np.min(boxes) >= 0
    assert np.max(np.array(boxes)[:, 2]) <= 96
    assert np.max(np.array(boxes)[:, 3]) <= 72


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def bad_weights(tmp_path):
    resnet34 = detectron2_state_dict(torchvision.models.resnet34())
    contents = {
        "garbage.pkl": b"garbage",
        "bomb.pkl": pickle.dumps({"model": {"stem.conv1.weight": Bomb()}}),
        "list.pkl": pickle.dumps([1, 2]),
        "resnet34.pkl": pickle.dumps({"model": resnet34}),
        "garbage.pth": b"garbage",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return contents


def test_bad_input_is_one_line(digits_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {
        "garbage.pkl": "corrupt or no pickle",
        "bomb.pkl": "asks for posix.system",
        "list.pkl": "dictionary of arrays, got a list",
        "resnet34.pkl": "80 tensors have no place in the configured network",
        "garbage.pth": "garbage.pth",
        "none.pkl": "No such file",
    }
    bad_weights(tmp_path)
    for name, why in cases.items():
        weights = ("MODEL.WEIGHTS", tmp_path / name)
        assert main(arguments(digits_root, tmp_path / "x", *weights)) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert why in captured.err
    assert not (tmp_path / "ran").exists()
    for words, why in (
        (["--num-gpus", "2", "--dataset-root", str(digits_root)], "--num-gpus: must be 0 or 1"),
        (["--dataset-root", str(tmp_path / "none")], "no folder"),
        (["--dataset-root", str(digits_root), "DATASETS.TEST", "('val',)"], "split 'val'"),
        (["--dataset-root", str(digits_root), "--classes", "one", "two", "--resume"], "unknown cl"),
        (["--dataset-root", str(digits_root), "SOLVER.MAXITER", "3"], "does not know the key"),
    ):
        assert main(["--config-file", str(SMALL), *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert why in captured.err


def test_loss_that_is_not_finite_is_an_error(digits_root, tmp_path, capsys):
    options = ("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "20")
    assert main(arguments(digits_root, tmp_path, *options)) == 2
    assert "lower SOLVER.BASE_LR" in capsys.readouterr().err


def test_checkpoint_of_another_configuration(digits_root, tmp_path, capsys):
    pytest.importorskip("pycocotools", reason="torchmetrics counts with pycocotools")
    assert main(arguments(digits_root, tmp_path, "SOLVER.MAX_ITER", "1")) == 0
    other = arguments(digits_root, tmp_path, "MODEL.FPN.OUT_CHANNELS", "24")
    assert main([*other[:4], "--resume", *other[4:]]) == 2
    assert "of another configuration" in capsys.readouterr().err
