"""The diagnose command on runs, checkpoints and bad input."""

import shutil

import pytest
import torch
import yaml

from lightly_collapse.cli import main
from lightly_collapse.pretrain.command import DIVERGED, pretrain
from lightly_collapse.pretrain.diagnose import diagnose_run
from lightly_collapse.pretrain.methods.base import DivergedError
from lightly_collapse.pretrain.runs import find_run, read_readings
from tests.pretrain.test_command import NARROW, SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    words = ["--model", "SimCLR", *NARROW, *SMALL, "--trainer.max_epochs", "1"]
    monitor = "lightly_collapse.callbacks.CollapseMonitor"
    words += ["--trainer.callbacks", monitor, "--trainer.callbacks.every_n_steps", "1"]
    words += ["--trainer.callbacks.dirpath", str(folder), "--data.views.noise", "3.0"]
    pretrain([*words, "--output", str(folder)])
    return folder


def error(capsys, *words):
    assert main(["diagnose", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_run_with_noise_and_its_trials(run, tmp_path, capsys):
    words = ["--images", "64", "--trial", "2", "--device", "cpu", "--output", str(tmp_path)]
    assert main(["diagnose", str(run), *words]) == 0
    out = capsys.readouterr().out
    assert "noise" in " ".join(out.split())
    page = (tmp_path / "diagnosis.html").read_text()
    assert "Weaken the augmentations: noise takes most." in page
    assert "as it is" in page
    assert (tmp_path / "diagnosis.json").is_file()


def test_a_checkpoint_with_images_of_its_own(run, tmp_path):
    shutil.copy(run / "last.ckpt", tmp_path / "a.ckpt")
    words = ["--data", "digits", "--image-size", "16", "--transform", "simclr", "--images", "16"]
    assert main(["diagnose", str(tmp_path / "a.ckpt"), *words, "--output", str(tmp_path)]) == 0


def test_bad_input_is_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in error(capsys, tmp_path / "empty")
    assert "does not exist" in error(capsys, tmp_path / "nothing")
    shutil.copy(run / "last.ckpt", tmp_path / "a.ckpt")
    assert "give --data" in error(capsys, tmp_path / "a.ckpt")
    assert "trial needs" in error(capsys, tmp_path / "a.ckpt", "--data", "digits", "--trial", "1")
    (tmp_path / "torn").mkdir()
    for name in ("last.ckpt", "config.yaml"):
        shutil.copy(run / name, tmp_path / "torn" / name)
    text = (run / "collapse.csv").read_text()
    (tmp_path / "torn" / "collapse.csv").write_text(text[: len(text) - len(text) // 5])
    assert "not finished: line" in error(capsys, tmp_path / "torn")
    (tmp_path / "torn" / "collapse.csv").write_text(text.strip()[:-1])
    assert "not finished: line 3 has no end" in error(capsys, tmp_path / "torn")
    (tmp_path / "torn" / "collapse.csv").write_text("step\n")
    assert "a header and a row" in error(capsys, tmp_path / "torn")
    (tmp_path / "torn" / "config.yaml").write_text("seed_everything: 0\n")
    assert "must have `model` and `data`" in error(capsys, tmp_path / "torn")


def test_a_run_that_ended_itself(run, tmp_path, capsys):
    words = ["--model", "SimCLR", *NARROW, *SMALL, "--trainer.max_epochs", "1"]
    hot = ["--model.optimizer.learning_rate", "1e30", "--model.optimizer.name", "sgd"]
    with pytest.raises(DivergedError):
        pretrain([*words, *hot, "--output", str(tmp_path)])
    assert "it ended in its first epoch: SimCLR: " in error(capsys, tmp_path)
    shutil.copy(run / "last.ckpt", tmp_path / "last.ckpt")
    found = diagnose_run(tmp_path, images=16)
    assert found.cause.name == "learning_rate"
    assert "NaN" in found.cause.measured
    (tmp_path / "last.ckpt").unlink()
    pretrain([*words, "--output", str(tmp_path)])
    assert not (tmp_path / DIVERGED).exists()


def test_the_checkpoint_must_fit_the_configuration(run, tmp_path, capsys):
    shutil.copy(run / "last.ckpt", tmp_path / "last.ckpt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["backbone"]["width"] = 6
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "does not fit config.yaml" in error(capsys, tmp_path)


def test_the_files_of_a_run(run):
    files = find_run(run)
    assert files.checkpoint.name == "last.ckpt"
    assert files.config["model"]["class_path"].endswith("SimCLR")
    rows = read_readings(files.readings)
    assert [row["step"] for row in rows] == [1.0, 2.0]
    assert torch.tensor([row["backbone/effective_rank"] for row in rows]).isfinite().all()
