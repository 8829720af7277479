"""Fine-tuning with detectron2, where it is installed."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
import torchvision
from torch import multiprocessing

from detection import train_net
from detection.average_precision import average_precision
from detection.voc import read_voc
from lightly_collapse.export import read_detectron2, to_detectron2
from lightly_collapse.io.locks import HeldError
from tests.detection.conftest import TINY, annotation
from tests.detection.test_train_torchvision import bad_weights

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "detection"
needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")


def arguments(root, output, *overrides):
    paths = ["--config-file", str(CONFIGS / "small.yaml"), "--dataset-root", str(root)]
    return [*paths, "--num-gpus", "0", *TINY, "OUTPUT_DIR", str(output), *map(str, overrides)]


def test_without_detectron2_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train_net.main(["--config-file", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "not installed" in captured.err
    assert "install.html" in captured.err
    assert "detection.train_torchvision" in captured.err


def fail(_process, message):
    raise ValueError(message)


@pytest.mark.slow
def test_an_error_in_a_process_of_several_is_that_error():
    with pytest.raises(ValueError, match=r"^image a\.jpg: cannot be read$"):
        train_net.with_plain_errors(
            lambda: multiprocessing.spawn(fail, ("image a.jpg: cannot be read",), nprocs=2)
        )


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FileNotFoundError(2, "No such file", "a.jpg"), ValueError),
        (HeldError("out is being written by another process"), ValueError),
        (IndexError("a fault of the program"), multiprocessing.ProcessRaisedException),
    ],
    ids=["file", "held", "fault"],
)
def test_which_errors_of_a_process_are_one_line(error, raised):
    def start():
        text = "".join(traceback.format_exception(error))
        raise multiprocessing.ProcessRaisedException(f"\n\n-- Process 0:\n{text}", 0, 1)

    with pytest.raises(raised) as caught:
        train_net.with_plain_errors(start)
    if raised is ValueError:
        assert str(caught.value) == str(error)


@needs_detectron2
def test_trains_and_reports(digits_root, tmp_path):
    path = tmp_path / "r18.pkl"
    to_detectron2(torchvision.models.resnet18(), path)
    output = tmp_path / "run"
    assert train_net.main(arguments(digits_root, output, "MODEL.WEIGHTS", path)) == 0
    result = json.loads((output / "result.json").read_text())
    assert result["trainer"] == "detectron2"
    assert result["classes"] == ["one", "seven", "zero"]
    assert (result["iterations"], result["images"]) == (4, 4)
    assert result["backbone_tensors"] == [100, 100]
    assert {"AP", "AP50", "AP75", "metric"} == set(result["pascal_voc"])
    assert (output / "model_final.pth").exists()
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    evaluate = ["--config-file", str(output / "config.yaml"), "--eval-only", "--num-gpus", "0"]
    assert train_net.main([*evaluate, *weights, "OUTPUT_DIR", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["AP50"] == pytest.approx(result["AP50"])
    assert again["pascal_voc"] == pytest.approx(result["pascal_voc"])


@needs_detectron2
@pytest.mark.parametrize(
    ("name_of_set", "metric"),
    [("test", "VOC 2012, area"), ("voc_2007_test", "VOC 2007, 11 points")],
)
def test_pascal_voc_evaluator_on_perfect_predictions(one_image, tmp_path, name_of_set, metric):
    from detectron2.structures import Boxes, Instances  # noqa: PLC0415

    from detection.detectron2.data import register  # noqa: PLC0415
    from detection.detectron2.evaluator import Evaluator  # noqa: PLC0415

    boxes = [("big / dog", 1, 1, 40, 40), ("cat", 50, 20, 90, 70), ("cat", 3, 50, 20, 70, True)]
    dataset = read_voc("test", one_image(annotation(boxes), image_id="an image"))
    dataset = dataclasses.replace(dataset, name=name_of_set)
    classes = ["big / dog", "cat"]
    name = register(dataset, "test", classes)
    evaluator = Evaluator(name, dataset, classes, tmp_path / "ground_truth")
    found = Instances((72, 96))
    found.pred_boxes = Boxes(torch.tensor([b.corners for b in dataset.photographs[0].boxes]))
    found.scores = torch.tensor([0.9, 0.8, 0.95])
    found.pred_classes = torch.tensor([0, 1, 1])
    evaluator.reset()
    evaluator.process([{"image_id": "000000"}], [{"instances": found}])
    evaluator.evaluate()
    assert evaluator.pascal_voc.pop("metric") == metric
    assert evaluator.pascal_voc == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})
    scores = average_precision(dataset, evaluator.predictions, classes)
    assert scores["AP50"] == pytest.approx(100)


@needs_detectron2
def test_extra_norm_head_and_its_weights(tmp_path):
    from detectron2.config import get_cfg  # noqa: PLC0415
    from detectron2.modeling import build_model  # noqa: PLC0415

    import detection.detectron2.roi_heads  # noqa: F401, PLC0415
    from detection.detectron2.checkpointer import Checkpointer  # noqa: PLC0415

    resnet = torchvision.models.resnet50()
    to_detectron2(resnet, tmp_path / "r50.pkl")
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "voc_R50_C4_24k.yaml"))
    cfg.merge_from_file(str(tmp_path / "r50.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = "BN"
    model = build_model(cfg)
    assert type(model.roi_heads).__name__ == "Res5ROIHeadsExtraNorm"
    assert model.roi_heads.res5.norm.num_features == 2048
    Checkpointer(model).load(str(tmp_path / "r50.pkl"))
    state = model.state_dict()
    for name, array in read_detectron2(tmp_path / "r50.pkl").items():
        owner = "roi_heads" if name.startswith("res5") else "backbone"
        assert torch.equal(state[f"{owner}.{name}"], torch.from_numpy(array))
    assert not [n for n, p in model.named_parameters() if not p.requires_grad]


@needs_detectron2
def test_killed_and_resumed(digits_root, tmp_path):
    options = ("SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER")
    command = arguments(digits_root, tmp_path, *options, "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "detection.train_net", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "last_checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = tmp_path / (tmp_path / "last_checkpoint").read_text()
    done = torch.load(checkpoint)["iteration"] + 1
    resumed = arguments(digits_root, tmp_path, *options, str(done + 2))
    assert train_net.main([*resumed[:4], "--resume", *resumed[4:]]) == 0
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == done + 1
    assert f"Starting training from iteration {done}" in (tmp_path / "log.txt").read_text()


@needs_detectron2
def test_bad_input_is_one_line(digits_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_weights(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(b"")
    fragment = "SOLVER: {MAX_ITER: !!python/object/apply:os.system ['touch ran']}"
    (tmp_path / "evil.yaml").write_text(fragment)
    small = str(CONFIGS / "small.yaml")
    for words, why in (
        (["MODEL.WEIGHTS", "bomb.pkl"], "asks for posix.system"),
        (["MODEL.WEIGHTS", "garbage.pkl"], "corrupt or no pickle"),
        (["MODEL.WEIGHTS", "list.pkl"], "got a list"),
        (["MODEL.WEIGHTS", "garbage.pth"], "garbage.pth"),
        (["MODEL.WEIGHTS", "none.pkl"], "weights none.pkl: no such file"),
        (["MODEL.WEIGHTS", "evil.pkl"], "evil.yaml"),
        (["MODEL.WEIGHT", "x"], "MODEL.WEIGHT"),
        (["SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0"], "NaN"),
        (["DATASETS.TEST", "('val',)"], "split 'val'"),
    ):
        capsys.readouterr()
        base = ["--config-file", small, "--dataset-root", str(digits_root), "--num-gpus", "0"]
        assert train_net.main([*base, *TINY, "OUTPUT_DIR", "out", *words]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert why in errors[-1]
    assert not (tmp_path / "ran").exists()
