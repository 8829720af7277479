"""Runs that are resumed with other settings, end on a full disk, or meet broken files midway."""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from detection import train_net, train_torchvision
from detection.average_precision import Prediction
from detection.compare import main as compare
from detection.photographs import Box, Dataset, Photograph
from detection.pictures import best_threshold
from tests.detection.conftest import TINY, annotation, write_folder

pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore")
TRAINERS = {"torchvision": train_torchvision.main, "detectron2": train_net.main}


@pytest.fixture(params=TRAINERS)
def trainer(request, monkeypatch):
    if request.param == "detectron2" and importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed")
    monkeypatch.chdir(request.config.rootpath)
    return TRAINERS[request.param]


def command(root, output, *options, flags=()):
    words = ["--config-file", "configs/detection/small.yaml", "--num-gpus", "0"]
    words += ["--dataset-root", str(root), *flags, *TINY, "SOLVER.MAX_ITER", "2"]
    return [*words, "OUTPUT_DIR", str(output), *options]


def last_error(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "error" in line][-1]


def test_resumed_with_other_classes_fewer_iterations_and_evaluations(
    trainer, digits_root, tmp_path, capsys
):
    periods = ("TEST.EVAL_PERIOD", "1")
    assert trainer(command(digits_root, tmp_path, *periods)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    # The evaluation after the first iteration has files of its own.
    early = json.loads((tmp_path / "result_0000001.json").read_text())
    assert (early["iterations"], result["iterations"]) == (1, 2)
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 4
    capsys.readouterr()
    swapped = ("--resume", "--classes", "zero", "seven", "one")
    assert trainer(command(digits_root, tmp_path, flags=swapped)) == 2
    assert "holds a run with the classes one, seven, zero, not zero" in last_error(capsys)
    fewer = command(digits_root, tmp_path, "SOLVER.MAX_ITER", "1", flags=("--resume",))
    assert trainer(fewer) == 2
    assert "has 2 iterations, more than SOLVER.MAX_ITER 1" in last_error(capsys)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    evaluate = command(digits_root, tmp_path, flags=("--resume", "--eval-only"))
    assert trainer(evaluate) == 0
    again = json.loads((tmp_path / "result.json").read_text())
    assert (again["iterations"], again["AP50"]) == (2, pytest.approx(result["AP50"]))


@pytest.fixture
def folder(tmp_path):
    """A function: a folder of two images with these boxes, `train` and `test` alike."""

    def write(*boxes):
        rng = np.random.default_rng(0)
        images = {
            f"image{i}": (rng.integers(0, 255, (72, 96, 3), np.uint8), annotation(list(boxes)))
            for i in range(2)
        }
        write_folder(tmp_path / "data", images, {"train": images, "test": images})
        return tmp_path / "data"

    return write


def test_all_objects_difficult(trainer, folder, tmp_path):
    root = folder(("a", 5, 5, 40, 40, True), ("costs $5 or $6", 50, 5, 90, 60, True))
    assert trainer(command(root, tmp_path / "out")) == 0
    text = (tmp_path / "out" / "result.json").read_text()
    result = json.loads(text)
    assert result["AP"] is result["AP50"] is None
    assert "NaN" not in text
    assert "-100" not in text
    assert result["classes"] == ["a", "costs $5 or $6"]


@pytest.mark.slow
def test_compare_of_difficult_objects_and_of_dollars(folder, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    root = folder(("a", 5, 5, 40, 40, True), ("costs $5 or $6", 50, 5, 90, 60, True))
    words = ["--config-file", "configs/detection/small.yaml", "--num-gpus", "0", "--seeds", "0"]
    words += ["--dataset-root", str(root), "--output", str(tmp_path / "out")]
    assert compare([*words, "--backbone", "random", *TINY, "SOLVER.MAX_ITER", "1"]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| random | 1 | none | none | none |" in table
    assert "no object that is not difficult" in table
    assert (tmp_path / "out" / "detections.png").stat().st_size > 10_000


def test_a_truncated_photograph_is_named(trainer, folder, tmp_path, capsys):
    root = folder(("a", 5, 5, 40, 40))
    for image in (root / "JPEGImages").iterdir():
        image.write_bytes(image.read_bytes()[:-300])
    assert trainer(command(root, tmp_path / "out")) == 2
    assert "image0.jpg: cannot be read" in last_error(capsys).replace("image1", "image0")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["detection.train_torchvision", "detection.train_net"])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_checkpoint(
    module, digits_root, tmp_path, request
):
    if module.endswith("net") and importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed")

    def limit():
        # A write beyond a megabyte fails with an OSError, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *command(digits_root, tmp_path)],
        cwd=request.config.rootpath,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "File too large" in done.stderr.splitlines()[-1]
    assert ".pth" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.pth"))
    assert not list(tmp_path.glob(".*"))


def test_temporary_files_of_a_killed_process_go(digits_root, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    orphan = tmp_path / ".model_final.pth.abc.tmp"
    orphan.write_bytes(b"half")
    assert train_torchvision.main(command(digits_root, tmp_path, "SOLVER.MAX_ITER", "1")) == 0
    assert not orphan.exists()
    shutil.rmtree(tmp_path)


def test_the_threshold_with_the_highest_f1():
    boxes = (Box("a", (0, 0, 10, 10)), Box("a", (20, 20, 30, 30)))
    data = Dataset("test", (Photograph("i", "i.jpg", 40, 40, boxes),), ())
    # Ranked: right, wrong, right, wrong, wrong: F1 2/3, 2/4, 4/5, 4/6, 4/7.
    corners = [[0, 0, 10, 10], [5, 25, 9, 30], [20, 20, 30, 30], [0, 0, 2, 2], [0, 30, 2, 32]]
    found = Prediction("i", corners, [0.9, 0.8, 0.6, 0.5, 0.1], [0] * 5)
    assert best_threshold([found], data, ["a"]) == 0.6
    assert best_threshold([Prediction("i", [], [], [])], data, ["a"]) == 0.5
