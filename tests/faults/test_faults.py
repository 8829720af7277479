"""What goes wrong while a command runs: killed, interrupted, a full disk, two at once.

    python -m pytest tests/faults -m slow

The moments of the kills are drawn anew at every run.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import resnet18

from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.report import measure
from tests.detection.conftest import TINY, annotation, write_folder
from tests.faults.places import SWEEP
from tests.faults.runs import Answer, finish, kill_when_writing, start, temporary_files

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KILLS = 10
EPOCHS = 40
PRETRAIN = [
    *("--model", "SimCLR", "--model.backbone.stem", "cifar", "--model.backbone.width", "8"),
    *("--data", "Digits", "--data.batch_size", "32", "--data.train_images", "64"),
    *("--data.bank_images", "64", "--trainer.max_epochs", str(EPOCHS)),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.limit_val_batches", "0"),
]
DETECTOR = ["--config-file", "configs/detection/small.yaml", "--num-gpus", "0"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder in VOC's format with three images."""
    rng = np.random.default_rng(0)
    box = annotation([("a", 5, 5, 60, 40)])
    images = {f"image{i}": (rng.integers(0, 255, (72, 96, 3), np.uint8), box) for i in range(3)}
    folder = tmp_path_factory.mktemp("voc")
    write_folder(folder, images, {"train": images, "test": images})
    return folder


def detector(photographs: Path, output: Path, iterations: int, *options: str) -> list[str]:
    words = ["detection.train_torchvision", *DETECTOR, "--dataset-root", str(photographs), *options]
    words += [*TINY, "SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "1"]
    return [*words, "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(output)]


def run(words: list[str], log: Path, limit: int | None = None) -> Answer:
    return finish(start(words, log, limit), log)


def done(words: list[str], log: Path) -> None:
    answer = run(words, log)
    assert answer.status == 0, answer.error


def assert_one_line(answer: Answer, status: int, said: str) -> None:
    assert answer.status == status, answer.error
    assert said in answer.error
    assert answer.error.count("\n") == 1, answer.error


def same_weights(a: Path, b: Path, key: str) -> None:
    one, other = (read_checkpoint(path)[key] for path in (a, b))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def kill_ten_times(
    command: Callable[[], list[str]],
    folder: Path,
    log: Path,
    seconds: float,
    check: Callable[[], None],
) -> None:
    """Kill a command ten times, resume it each time, let it end, and check what it left.

    Every second kill is at a random moment, the others are while a file is written. A command that
    ends before it is killed is checked too, and begins anew.
    """
    kills = writing = 0
    while True:
        process = start(command(), log)
        if kills < KILLS:
            time.sleep(random.uniform(0, seconds))
            if kills % 2:
                writing += kill_when_writing(process, folder, seconds)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                kills += 1
                continue
        answer = finish(process, log)
        assert answer.status == 0, answer.error
        check()
        assert temporary_files(folder) == []
        if kills == KILLS:
            break
        shutil.rmtree(folder)
    print(f"{kills} kills, {writing} of them while a file was written")
    assert writing


def test_pretrain_killed_ten_times(tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    began = time.monotonic()
    done(["pretrain", *PRETRAIN, "--output", str(whole)], log)
    seconds = (time.monotonic() - began) / 16

    def command() -> list[str]:
        resume = ["--ckpt_path", "last"] if (killed / "last.ckpt").exists() else []
        return ["pretrain", *PRETRAIN, "--output", str(killed), *resume]

    def check() -> None:
        same_weights(whole / "last.ckpt", killed / "last.ckpt", "state_dict")

    kill_ten_times(command, killed, log, seconds, check)


def test_sweep_killed_ten_times(tmp_path):
    settings = yaml.safe_load(SWEEP)
    settings["settings"]["trainer"]["max_epochs"] = EPOCHS // 2
    settings["settings"]["trainer"]["limit_val_batches"] = 0
    file, log = tmp_path / "sweep.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump(settings))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    done(["sweep", str(file), "--output", str(whole)], log)
    seconds = (time.monotonic() - began) / 16

    def check() -> None:
        for cell in ("a-seed0", "b-seed0"):
            same_weights(whole / cell / "last.ckpt", killed / cell / "last.ckpt", "state_dict")
        ours, theirs = (json.loads((f / "results.json").read_text()) for f in (killed, whole))
        for mine, other in zip(ours, theirs, strict=True):
            for name in ("rankme", "spectrum", "mlid", "variant", "seed"):
                assert mine[name] == other[name], name

    words = ["sweep", str(file), "--output", str(killed)]
    kill_ten_times(lambda: words, killed, log, seconds, check)


def test_detection_killed_ten_times(photographs, tmp_path):
    pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    began = time.monotonic()
    done(detector(photographs, whole, 16), log)
    seconds = (time.monotonic() - began) / 16

    def check() -> None:
        same_weights(whole / "model_final.pth", killed / "model_final.pth", "model")
        assert [path.name for path in killed.glob("model_*.pth")] == ["model_final.pth"]

    words = detector(photographs, killed, 16, "--resume")
    kill_ten_times(lambda: words, killed, log, seconds, check)


def test_measure_killed_ten_times(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(2000, 16)))
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    words = ["measure", "--embeddings", str(tmp_path / "rows.npy"), "--output"]
    began = time.monotonic()
    done([*words, str(whole)], log)
    seconds = time.monotonic() - began
    kills = writing = 0
    while kills < KILLS:
        process = start([*words, str(killed)], log)
        if kills % 2:
            writing += kill_when_writing(process, killed, 10 * seconds)
        else:
            process.join(random.uniform(0, seconds))
            process.kill()
            process.join()
        kills += process.exitcode == -signal.SIGKILL
        # A page that is there is whole.
        for page in killed.glob("*.html"):
            assert page.read_text().rstrip().endswith("</html>")
    done([*words, str(killed)], log)
    assert writing
    assert (killed / "measure.json").read_bytes() == (whole / "measure.json").read_bytes()
    assert temporary_files(killed) == []


def test_two_sweeps_in_one_folder_run_nothing_twice(tmp_path):
    settings = yaml.safe_load(SWEEP)
    settings["settings"]["trainer"]["max_epochs"] = 4
    settings["seeds"] = [0, 1]
    file, output = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(settings))
    words = ["sweep", str(file), "--output", str(output)]
    logs = [tmp_path / "one", tmp_path / "other"]
    answers = [finish(process, log) for process, log in [(start(words, log), log) for log in logs]]
    assert [answer.status for answer in answers] == [0, 0]
    done(words, tmp_path / "again")
    results = json.loads((output / "results.json").read_text())
    assert len(results) == 4
    assert not any(result["resumed"] for result in results)
    said = [line for answer in answers for line in answer.out.splitlines() if line[0] == "["]
    left_out = [a for answer in answers for a in answer.out.splitlines() if "is left out" in a]
    assert len(said) - len(left_out) >= 4
    assert temporary_files(output) == []


def test_two_trainings_in_one_folder(tmp_path):
    output = tmp_path / "out"
    words = ["pretrain", *PRETRAIN, "--trainer.max_epochs", "100000", "--output", str(output)]
    first = start(words, tmp_path / "first")
    while not (output / ".lock").exists():
        time.sleep(0.01)
    assert_one_line(run(words, tmp_path / "second"), 2, "is being written by process")
    first.kill()
    first.join()


INTERRUPTED = {
    "pretrain": ["pretrain", *PRETRAIN, "--trainer.max_epochs", "100000", "--output", "OUT"],
    "sweep": ["sweep", "SWEEP", "--set", "trainer.max_epochs=100000", "--output", "OUT"],
    "demo": ["demo", "--epochs", "10000", "--output", "OUT"],
    "toy": ["toy", "strong-augmentation", "--steps", "1000000", "--output", "OUT"],
    "predict": ["predict", "--data", "digits", "--views", "1000", "--output", "OUT"],
    "measure": ["measure", "--arch", "resnet18", "--data", "digits", "--output", "OUT"],
    "detection": [],
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_is_one_line_and_leaves_whole_files(name, photographs, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    places = {"OUT": str(output), "SWEEP": str(tmp_path / "sweep.yaml")}
    words = [places.get(word, word) for word in INTERRUPTED[name]]
    if name == "detection":
        pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")
        words = detector(photographs, output, 100000)
    process = start(words, log)
    while not output.exists():
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(random.uniform(0.5, 3))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    answer = finish(process, log, 60)
    # What a library warned of before is not the command's.
    assert answer.status == 130, answer.error
    assert answer.error.splitlines()[-1].endswith(": interrupted")
    assert "Traceback" not in answer.error
    assert temporary_files(output) == []
    for checkpoint in [*output.rglob("*.ckpt"), *output.rglob("*.pth")]:
        read_checkpoint(checkpoint)


def full_disk_cases(tmp_path: Path, photographs: Path) -> dict[str, tuple[list[str], list[str]]]:
    """The commands that write, and the files that they write."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(300, 8)))
    for name in "ab":
        measure(np.random.default_rng(ord(name)).normal(size=(300, 8))).save(tmp_path / name)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    torch.save(resnet18().state_dict(), tmp_path / "r18.pt")
    output = str(tmp_path / "out")
    pages = ["spectrum.png"]
    images = str(tmp_path / "images")
    return {
        "measure": (
            ["measure", "--arch", "resnet18", "--data", images, "--image-size", "16"],
            ["measure.json", "measure.html", *pages],
        ),
        "embeddings": (
            ["measure", "--embeddings", str(tmp_path / "rows.npy")],
            ["measure.json", "measure.html", *pages],
        ),
        "compare": (
            ["compare", str(tmp_path / "a"), str(tmp_path / "b")],
            ["compare.html", *pages],
        ),
        "predict": (
            ["predict", "--data", images, "--views", "2", "--size", "8"],
            ["prediction.json", "report.html", *pages],
        ),
        "toy": (["toy", "strong-augmentation", "--runs", "1", "--steps", "20"], ["toy.json"]),
        "demo": (["demo", "--epochs", "1", "--methods", "baseline"], ["results.json", *pages]),
        "pretrain": (
            ["pretrain", *PRETRAIN, "--trainer.max_epochs", "1"],
            ["config.yaml"],
        ),
        "sweep": (["sweep", str(tmp_path / "sweep.yaml")], ["results.json", "table.md"]),
        "export": (
            ["export", "--checkpoint", str(tmp_path / "r18.pt"), "--output", f"{output}/x.pkl"],
            ["x.pkl", "x.yaml"],
        ),
        "detection": (detector(photographs, Path(output), 1), ["result.json"]),
    }


CASES = (
    *("measure", "embeddings", "compare", "predict", "toy", "demo", "pretrain", "sweep"),
    *("export", "detection"),
)


@pytest.mark.parametrize("limit", [100, 20_000])
@pytest.mark.parametrize("name", CASES)
def test_a_full_disk_is_one_line_and_older_files_stay_whole(name, limit, photographs, tmp_path):
    words, files = full_disk_cases(tmp_path, photographs)[name]
    output = tmp_path / "out"
    output.mkdir()
    if name not in ("export", "detection"):
        words = [*words, "--output", str(output)]
    older = b"of an older run"
    for file in files:
        (output / file).write_bytes(older)
    answer = run(words, tmp_path / "log", limit)
    assert answer.status == 2, answer.error
    (line,) = [line for line in answer.error.splitlines() if "error" in line]
    assert "File too large" in line
    assert "Traceback" not in answer.error
    assert answer.error.splitlines()[-1] == line
    assert temporary_files(output) == []
    # Each is the older file, or a new one that fits, complete.
    for file in output.rglob("*"):
        if file.is_file() and file.read_bytes() != older:
            assert file.stat().st_size <= limit
            if file.suffix == ".json":
                json.loads(file.read_text())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
@pytest.mark.parametrize("name", ["measure", "pretrain", "detection"])
def test_a_disk_without_room(name, photographs, tmp_path):
    words, _ = full_disk_cases(tmp_path, photographs)[name]
    output = tmp_path / "out"
    output.mkdir()
    if os.system(f"mount -t tmpfs -o size=100k tmpfs {output}"):
        pytest.skip("may not mount a file system here")
    try:
        words = words if name == "detection" else [*words, "--output", str(output)]
        answer = run(words, tmp_path / "log")
        assert answer.status == 2, answer.error
        assert "No space left on device" in answer.error.splitlines()[-1]
        assert "Traceback" not in answer.error
        assert temporary_files(output) == []
    finally:
        assert os.system(f"umount {output}") == 0
