"""Checkpoints of a run: written atomically, plain data, checked before they are resumed."""

import os
import pickle

import pytest
import torch

from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO, check_checkpoint

SETTINGS = {"name": "resnet18", "stem": "cifar", "width": 4}


def content(**more):
    backbone = create_backbone(BackboneSettings(**SETTINGS))
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    about = {"method": "SimCLR", "backbone": dict(SETTINGS), "feature_dim": 32}
    return backbone, {"state_dict": state, "pretrain": about, **more}


def test_the_backbone_comes_back(tmp_path):
    backbone, checkpoint = content()
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "a/last.ckpt")
    loaded = load_model(None, tmp_path / "a/last.ckpt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.model(x), backbone.eval()(x))
    assert loaded.pretrained.method == "SimCLR"
    assert not loaded.model.training


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
    target = ""

    def __reduce__(self):
        return os.mkdir, (Evil.target,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    Evil.target = str(tmp_path / "owned")
    torch.save({"pretrain": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil.ckpt: cannot be loaded with weights_only=True"):
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
    with pytest.raises(ValueError, match="corrupt or not a checkpoint"):
        read_checkpoint(path)


def test_other_programs_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not written by lightly-collapse pretrain"):
        check_checkpoint(tmp_path / "other.ckpt", "SimCLR", BackboneSettings())
    with pytest.raises(FileNotFoundError, match=r"nowhere.ckpt does not exist"):
        check_checkpoint(tmp_path / "nowhere.ckpt", "SimCLR", BackboneSettings())


def test_another_method_or_backbone_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content()[1], path)
    check_checkpoint(path, "SimCLR", BackboneSettings(**SETTINGS))
    with pytest.raises(ValueError, match="of the method SimCLR, not BYOL"):
        check_checkpoint(path, "BYOL", BackboneSettings(**SETTINGS))
    with pytest.raises(ValueError, match="another backbone: width 4, not 8"):
        check_checkpoint(path, "SimCLR", BackboneSettings(**{**SETTINGS, "width": 8}))


@pytest.mark.parametrize(
    "about",
    [
        None,
        {},
        {"method": "SimCLR", "backbone": {"width": "wide"}, "feature_dim": 3},
        {"method": "SimCLR", "backbone": {"depth": 3}, "feature_dim": 3},
        {"method": "SimCLR", "backbone": {}, "feature_dim": None},
    ],
)
def test_damaged_metadata_is_one_line(tmp_path, about):
    checkpoint = content()[1] | {"pretrain": about}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    for use in (
        lambda: load_model(None, tmp_path / "a.ckpt"),
        lambda: check_checkpoint(tmp_path / "a.ckpt", "SimCLR", BackboneSettings()),
    ):
        with pytest.raises(ValueError, match=r"a.ckpt: its entry `pretrain` is damaged") as error:
            use()
        assert "\n" not in str(error.value)
