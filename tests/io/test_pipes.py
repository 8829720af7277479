"""A command whose output nobody reads any more, or cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import ROOT

LONG = ["pretrain", "--list-configs"]


def run(
    words: list[str], stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightly_collapse.cli", *words],
        check=False,
        text=True,
        cwd=ROOT,
        stdout=stdout,
        stderr=stderr,
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pipes of Unix")
@pytest.mark.parametrize(("words", "status"), [(LONG, 141), (["nosuch"], 2)])
def test_nobody_reads(words, status):
    end, pipe = os.pipe()
    os.close(end)
    done = run(words, stdout=pipe) if status == 141 else run(words, stderr=pipe)
    os.close(pipe)
    assert done.returncode == status
    assert not done.stderr
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_the_output():
    with open("/dev/full", "w") as full:
        done = run(LONG, stdout=full.fileno())
    assert done.returncode == 2
    assert "error: [Errno 28] No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
