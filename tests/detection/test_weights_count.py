"""Both trainers count what a weight file gives to the backbone; less than all is an error."""

import importlib.util
import json
import pickle

import numpy as np
import pytest
import torch
import torchvision

from detection import train_net, train_torchvision
from detection.compare import main as compare
from lightly_collapse.export import to_detectron2
from tests.detection.conftest import TINY

pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore")
TRAINERS = {"torchvision": train_torchvision.main, "detectron2": train_net.main}
SMALL = ["--config-file", "configs/detection/small.yaml", "--num-gpus", "0"]


@pytest.fixture(params=TRAINERS)
def trainer(request, monkeypatch):
    if request.param == "detectron2" and importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed")
    monkeypatch.chdir(request.config.rootpath)
    return TRAINERS[request.param]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "torchvision.pth")
    for depth in (18, 34, 50):
        to_detectron2(getattr(torchvision.models, f"resnet{depth}")(), folder / f"r{depth}.pkl")
        (folder / f"r{depth}.yaml").unlink()
    arrays = pickle.loads((folder / "r18.pkl").read_bytes())["model"]
    part = {name: array for name, array in arrays.items() if not name.startswith("res5")}
    (folder / "part.pkl").write_bytes(pickle.dumps({"model": part}))
    (folder / "array.pkl").write_bytes(pickle.dumps({"model": {"a": np.zeros(3, np.float32)}}))
    return folder


def command(root, output, weights, *options):
    paths = ["--dataset-root", str(root), "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(output)]
    # Options of the parser come before the overrides.
    flags = [word for word in options if word.startswith("--")]
    rest = [word for word in options if not word.startswith("--")]
    return [*SMALL, *flags, *paths[:2], *TINY, *paths[2:], "SOLVER.MAX_ITER", "1", *rest]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision.pth", ()),
        ("r50.pkl", ()),
        ("r34.pkl", ()),
        ("r18.pkl", ("MODEL.RESNETS.DEPTH", "34")),
        ("array.pkl", ()),
        ("part.pkl", ()),
    ],
)
def test_weights_that_do_not_fill_the_backbone(
    trainer, files, name, options, digits_root, tmp_path, capsys
):
    assert trainer(command(digits_root, tmp_path, files / name, *options)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line][-1]
    assert f"weights {files / name}" in error
    assert any(words in error for words in ("no place", "tensors", "no tensor of a ResNet"))
    assert not (tmp_path / "result.json").exists()


def test_partial_weights_when_allowed(trainer, files, digits_root, tmp_path, capsys):
    words = command(digits_root, tmp_path, files / "part.pkl", "--allow-partial")
    assert trainer(words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    # res5 of a ResNet-18: two blocks of two convolutions and a shortcut, five tensors each.
    assert result["backbone_tensors"] == [75, 100]
    assert "gave 75 of the backbone's 100 tensors" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_warns(files, digits_root, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    words = ["--dataset-root", str(digits_root), "--output", str(tmp_path / "out"), "--seeds", "0"]
    words += ["--allow-partial", "--backbone", f"part={files / 'part.pkl'}"]
    assert compare([*SMALL, *words, *TINY, "SOLVER.MAX_ITER", "1"]) == 0
    sentence = "gave 75 of the backbone&#39;s 100 tensors"
    assert sentence in (tmp_path / "out" / "index.html").read_text()
    assert sentence.replace("&#39;", "'") in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("option", ["--classes", "--backbone"])
def test_overrides_after_a_list_are_not_taken_into_it(option):
    import argparse  # noqa: PLC0415

    from detection.config import add_arguments, parse_arguments  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", nargs="+")
    add_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    words = ["dog", "cat", "OUTPUT_DIR", "runs/x", "SOLVER.MAX_ITER", "2"]
    arguments = parse_arguments(parser, [option, *words])
    assert getattr(arguments, option[2:]) == ["dog", "cat"]
    assert arguments.opts == words[2:]
    # Words that look like a key, or are one, are classes where no value follows.
    words = ["STOP_SIGN", "SEED", "OUTPUT_DIR", "runs/x"]
    arguments = parse_arguments(parser, [option, *words])
    assert getattr(arguments, option[2:]) == words[:2]
    assert arguments.opts == words[2:]
    with pytest.raises(SystemExit):
        parse_arguments(parser, [option, "OUTPUT_DIR", "runs/x"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["MODEL.DEVICE", "foo"], "MODEL.DEVICE is no device"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD must be at least 1, got 0"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH must be at least 1, got 0"),
        (["MODEL.DEVICE", "meta"], "MODEL.DEVICE meta cannot be used here"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], "INPUT.MIN_SIZE_TRAIN"),
        (["INPUT.MAX_SIZE_TEST", "0"], "INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST"),
        (["MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"], "MODEL.PIXEL_MEAN and PIXEL_STD must be three"),
        (["MODEL.BACKBONE.FREEZE_AT", "9"], "MODEL.BACKBONE.FREEZE_AT must be 0 to 5, got 9"),
        (["MODEL.RESNETS.DEPTH", "20"], "MODEL.RESNETS.DEPTH must be 18, 34, 50, 101, 152, got 20"),
        (["MODEL.FPN.OUT_CHANNELS", "0"], "MODEL.FPN.OUT_CHANNELS must be at least 1, got 0"),
        (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[]]"], "ASPECT_RATIOS must be lists"),
        (["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[]"], "IOU_THRESHOLDS must be 1 in number"),
        (["INPUT.RANDOM_FLIP", "sideways"], "INPUT.RANDOM_FLIP must be horizontal"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [24]]"], "config: "),
        (["SOLVER.STEPS", "(200, 100)"], "SOLVER.STEPS must ascend, got [200, 100]"),
        (["SOLVER.BASE_LR", "-1.0"], "SOLVER.BASE_LR must be finite and not negative, got -1.0"),
        (["TEST.EVAL_PERIOD", "-5"], "TEST.EVAL_PERIOD must be 0 or more, got -5"),
        (["DATASETS.CLASSES", "['a', 'a']"], "each must come once, got a, a"),
        (["--eval-only"], "--eval-only: nothing to evaluate"),
        (["MODEL.RESNETS.NORM", "XN"], "MODEL.RESNETS.NORM must be one of"),
        (["SOLVER.LAYER_DECAY", "1.5"], "SOLVER.LAYER_DECAY must be in"),
        (["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER must be SGD, AdamW"),
        (["--num-gpus", "2"], "--num-gpus"),
    ],
)
def test_settings_that_cannot_be_run(trainer, words, why, digits_root, tmp_path, capsys):
    base = ["--config-file", "configs/detection/small.yaml", "--dataset-root", str(digits_root)]
    gpus = [] if "--num-gpus" in words or "MODEL.DEVICE" in words else ["--num-gpus", "0"]
    flags, rest = (words, []) if words[0].startswith("--") else ([], words)
    assert trainer([*base, *gpus, *flags, *TINY, "OUTPUT_DIR", str(tmp_path), *rest]) == 2
    captured = capsys.readouterr()
    assert why in captured.err.splitlines()[-1]


def test_no_code_is_run_from_a_configuration(trainer, digits_root, tmp_path, capsys):
    ran = tmp_path / "ran"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"SOLVER: {{MAX_ITER: !!python/object/apply:os.system ['touch {ran}']}}")
    words = ["--config-file", str(evil), "--num-gpus", "0", "--dataset-root", str(digits_root)]
    assert trainer([*words, "OUTPUT_DIR", str(tmp_path / "out")]) == 2
    assert "config" in capsys.readouterr().err
    assert not ran.exists()
