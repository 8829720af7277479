"""Trainings of several processes within a sweep, and what one with bad input does to the others."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightly_collapse.io.locks import HeldError, hold_folder, lock_descriptors
from lightly_collapse.pretrain import processes
from lightly_collapse.pretrain.methods.base import DivergedError
from lightly_collapse.pretrain.processes import count_processes
from lightly_collapse.pretrain.sweep import sweep

DATA = """
import os
from lightly_collapse.pretrain.data import Digits


class Broken(Digits):
    seen = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen += 1
        if self.seen == 3 and os.environ.get("LOCAL_RANK", "0") == os.environ["BROKEN"]:
            raise ValueError("shelf 7 cannot be read")
        return super().on_after_batch_transfer(batch, dataloader_idx)
"""
SWEEP = {
    "seeds": [0],
    "settings": {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": "ddp",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "data": {
            "class_path": "broken_data.Broken",
            "init_args": {"batch_size": 16, "train_images": 128, "bank_images": 64},
        },
        "model": {
            "class_path": "SimCLR",
            "init_args": {
                "backbone": {"stem": "cifar", "width": 4},
                "optimizer": {"warmup_epochs": 0},
            },
        },
    },
    "methods": {"SimCLR": {}, "tau": {"settings": {"model": {"init_args": {"temperature": 0.4}}}}},
    "cells": [{"methods": ["SimCLR", "tau"]}],
}


def run_sweep(folder: Path, broken: str) -> subprocess.CompletedProcess[str]:
    (folder / "broken_data.py").write_text(DATA)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return subprocess.run(
        [sys.executable, "-m", "lightly_collapse.cli", "sweep", "sweep.yaml", "--output", "out"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "LOCAL_RANK"},
            "OMP_NUM_THREADS": "1",
            "BROKEN": broken,
            "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])]),
        },
    )


@pytest.mark.slow
def test_a_sweep_of_two_processes_a_training(tmp_path: Path) -> None:
    done = run_sweep(tmp_path, "none")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["variant"] for r in results] == ["SimCLR", "tau"]
    assert all(0 < r["knn"] <= 1 and r["rankme"] > 1 for r in results)
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_bad_input_of_one_process_ends_all_with_that_error(tmp_path: Path, rank: str) -> None:
    began = time.monotonic()
    done = run_sweep(tmp_path, rank)
    assert time.monotonic() - began < 120  # beside other work; by itself it takes half a minute
    assert done.returncode == 2
    assert done.stderr.strip().endswith("lightly-collapse sweep: error: shelf 7 cannot be read")
    left = subprocess.run(
        ["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""
    assert not list((tmp_path / "out").rglob("result.json"))
    assert not list((tmp_path / "out").rglob(".lock"))


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"devices": 1}, 1),
        ({"accelerator": "cpu"}, 1),
        ({"accelerator": "cpu", "devices": "2", "strategy": "ddp"}, 2),
        ({"accelerator": "cpu", "devices": 2, "num_nodes": 2}, 4),
        ({"accelerator": "nosuch", "devices": 2}, 1),
        ({"accelerator": "cpu", "devices": -3}, 1),
    ],
)
def test_number_of_processes(trainer: dict[str, object], expected: int) -> None:
    assert count_processes(trainer) == expected


@pytest.mark.parametrize(
    ("reports", "kind", "message"),
    [
        ([["RuntimeError", "Connection closed"], ["ValueError", "shelf 7"]], ValueError, "shelf 7"),
        ([["OSError", "no room"], ["DivergedError", "loss is nan"]], DivergedError, "loss is nan"),
        ([["TypeError", "no len"]], RuntimeError, "TypeError: no len"),
        ([], RuntimeError, "ended with status 9"),
    ],
)
def test_the_first_cause_is_raised(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reports: list[list[str]],
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(processes, "_SECONDS", 0)
    for rank, report in enumerate(reports):
        text = json.dumps([*report, f"traceback of {report[0]}"])
        (tmp_path / f"error-{rank}.json").write_text(text)
    error, trace = processes._first_cause(tmp_path, 9)
    assert ("traceback of" in trace) is bool(reports)
    assert type(error) is kind
    assert message in str(error)


def test_a_folder_stays_held_by_a_process_that_inherits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightly_collapse.io.locks._SECONDS", 0)
    with hold_folder(tmp_path):
        files = lock_descriptors(tmp_path)
        other = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=files
        )
        lock = tmp_path / ".lock"
        kept = lock.with_name("kept")
        os.link(lock, kept)
    # As if the holder had been killed: the file is there, and no longer open here.
    os.rename(kept, lock)
    with pytest.raises(HeldError), hold_folder(tmp_path):
        pass
    other.communicate(b"\n")
    with hold_folder(tmp_path):
        assert lock_descriptors(tmp_path)


def test_a_sweep_is_not_started_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="run it in one process, got WORLD_SIZE 2"):
        sweep("cifar10")
