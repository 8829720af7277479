import os
import stat
import subprocess
import sys
import tempfile

import pytest

from lightly_collapse.io.files import atomic_write, check_writable_folder


def test_folder_is_made_and_left_empty(tmp_path):
    folder = check_writable_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file"):
        check_writable_folder(tmp_path / "file" / "inside")


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    atomic_write(path, b"old")

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupt_of_torch_save_is_an_interrupt(tmp_path):
    path = tmp_path / "last.ckpt"
    atomic_write(path, b"old")

    def interrupted(file):
        try:
            file.write(b"half")
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")  # as torch.save's writer when it is closed

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_file_has_the_usual_permissions(tmp_path):
    atomic_write(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]


def test_temporary_files_of_killed_writers_are_removed_and_no_others(tmp_path):
    killed = """
import os, sys
from lightly_collapse.io.files import atomic_write
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
atomic_write(sys.argv[1], write)
"""
    target = tmp_path / "last.ckpt"
    atomic_write(target, b"old")
    run = subprocess.run([sys.executable, "-c", killed, str(target)], timeout=60, check=False)
    assert run.returncode == -9
    (orphan,) = tmp_path.glob(".last.ckpt.*.tmp")
    assert target.read_bytes() == b"old"
    others = [tmp_path / name for name in (".other.ckpt.x.tmp", "last.ckpt.tmp", ".last.ckpt.swp")]
    for file in others:
        file.touch()
    atomic_write(target, b"new")
    assert not orphan.exists()
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (target, *others)}
    assert target.read_bytes() == b"new"


def test_the_temporary_file_of_a_live_writer_is_left_alone(tmp_path):
    target = tmp_path / "last.ckpt"

    def slow(file):
        file.write(b"from the slow writer")
        file.flush()
        (temporary,) = tmp_path.glob(".last.ckpt.*.tmp")
        atomic_write(target, b"from the fast writer")
        assert temporary.exists()

    atomic_write(target, slow)
    assert target.read_bytes() == b"from the slow writer"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_temporary_file_taken_for_an_orphan_before_it_was_locked(tmp_path, monkeypatch):
    made = []
    mkstemp = tempfile.mkstemp

    def and_removed(**options):
        handle, name = mkstemp(**options)
        made.append(name)
        if len(made) == 1:  # another process was faster
            os.unlink(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", and_removed)
    atomic_write(tmp_path / "a", b"content")
    assert len(made) == 2
    assert (tmp_path / "a").read_bytes() == b"content"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("how", ["bytes", "torch.save"])
def test_a_full_disk_is_one_os_error_and_the_old_file_stays(tmp_path, how):
    target = tmp_path / "last.ckpt"
    atomic_write(target, b"old")
    code = """
import resource, sys, torch
from lightly_collapse.io.files import atomic_write
content = {
    "bytes": bytes(500_000),
    "torch.save": lambda file: torch.save({"a": torch.zeros(500_000)}, file),
}[sys.argv[2]]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    atomic_write(sys.argv[1], content)
except OSError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(target), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.strip() == f"[Errno 27] File too large: '{target}'"
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
