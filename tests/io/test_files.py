import os
import stat

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


def test_file_has_the_usual_permissions(tmp_path):
    atomic_write(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes[0] == modes[1]
