"""Checkpoints: whole or not there, plain data, and known by their method."""

import os
import pickle

import pytest
import torch

from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.pretrain.checkpoint import (
    AtomicCheckpointIO,
    check_checkpoint,
    load_backbone,
    read_checkpoint,
)

SETTINGS = {"name": "resnet18", "stem": "cifar", "width": 4}


def content(**more):
    backbone = create_backbone(BackboneSettings(**SETTINGS))
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    about = {"method": "SimCLR", "backbone": dict(SETTINGS), "feature_dim": 32}
    return backbone, {"state_dict": state, "pretrain": about, **more}


def test_the_backbone_comes_back(tmp_path):
    backbone, checkpoint = content()
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "a/last.ckpt")
    loaded, about = load_backbone(tmp_path / "a/last.ckpt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), backbone.eval()(x))
    assert about["method"] == "SimCLR"
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content()[1], path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO().save_checkpoint(content(epoch=9)[1], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class Evil:
    def __reduce__(self):
        return os.mkdir, (Evil.target,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    Evil.target = str(tmp_path / "owned")
    torch.save({"pretrain": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil.ckpt cannot be read as plain data"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("junk", [b"", b"nonsense", pickle.dumps({"a": 1})], ids=repr)
def test_junk_is_refused_by_name(tmp_path, junk):
    path = tmp_path / "junk.ckpt"
    path.write_bytes(junk)
    with pytest.raises(ValueError, match=r"checkpoint .*junk.ckpt"):
        read_checkpoint(path)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content()[1], path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)


def test_other_programs_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by lightly-collapse pretrain"):
        read_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nowhere.ckpt is not there"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


def test_another_method_or_backbone_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content()[1], path)
    check_checkpoint(path, "SimCLR", dict(SETTINGS))
    with pytest.raises(ValueError, match="of the method SimCLR, not BYOL"):
        check_checkpoint(path, "BYOL", dict(SETTINGS))
    with pytest.raises(ValueError, match="width 4 there and 8 here"):
        check_checkpoint(path, "SimCLR", {**SETTINGS, "width": 8})
