"""Two processes over gloo: the run is Lightning's, started and resumed by the command."""

import os
import subprocess
import sys

import pytest

from lightly_collapse.io.checkpoints import read_checkpoint


def command(output, *more):
    words = [
        *("--model", "SimCLR", "--model.backbone.stem", "cifar", "--model.backbone.width", "4"),
        *("--model.ldreg", '{"k": 40, "weight": 0.1}'),  # more than one process's 32 rows
        *("--model.orthogonality", '{"weight": 0.001}'),
        *("--data", "Digits", "--data.batch_size", "16", "--data.train_images", "128"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--trainer.enable_progress_bar", "false", "--output", str(output)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lightly_collapse.cli", "pretrain", *words, *more],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return read_checkpoint(output / "last.ckpt")


@pytest.mark.slow
def test_two_processes_train_and_resume(tmp_path):
    first = command(tmp_path, "--trainer.max_epochs", "1")
    assert first["global_step"] == 128 // (2 * 16)
    again = command(tmp_path, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert again["global_step"] == 8
    name = "backbone.conv1.weight"
    assert not first["state_dict"][name].equal(again["state_dict"][name])
