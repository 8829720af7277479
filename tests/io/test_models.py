"""Checkpoints of every shape into a model: the same weights, or one line that says what to do."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from lightly_collapse.io.backbones import create_backbone
from lightly_collapse.io.models import load_checkpoint, load_model


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(1)
    return resnet18(num_classes=7)


def prefixed(backbone, prefix):
    return {prefix + name: value for name, value in backbone.state_dict().items()}


def same(model, backbone):
    own = model.state_dict()
    theirs = backbone.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in own.items())


def noise(backbone, prefix):
    return {n: torch.randn_like(v.float()) for n, v in prefixed(backbone, prefix).items()}


class Numbered(nn.Module):
    """Lightly's idiom: the children without the classifier, then a projection head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = nn.Sequential(*list(backbone.children())[:-1])
        self.projection_head = nn.Linear(512, 8)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("plain", ""),
        ("lightning", "backbone."),
        ("lightly", "backbone."),
        ("ddp", "module."),
        ("dino", "student.backbone."),
        ("momentum", "backbone."),
        ("compiled", "backbone._orig_mod."),
    ],
)
def test_checkpoint_formats(tmp_path, backbone, name, prefix):
    contents = {
        "plain": backbone.state_dict,
        "lightning": lambda: {
            "epoch": 3,
            "state_dict": prefixed(backbone, "backbone.")
            | {"projection_head.layers.0.weight": torch.zeros(2, 2)},
        },
        "lightly": lambda: {"state_dict": Numbered(backbone).state_dict()},
        "ddp": lambda: {"model": prefixed(backbone, "module.")},
        "dino": lambda: {
            "state_dict": noise(backbone, "teacher.backbone.")
            | prefixed(backbone, "student.backbone.")
        },
        "momentum": lambda: noise(backbone, "backbone_momentum.") | prefixed(backbone, "backbone."),
        "compiled": lambda: {"state_dict": prefixed(backbone, "backbone._orig_mod.")},
    }
    path = tmp_path / "c.ckpt"
    torch.save(contents[name](), path)
    model = create_backbone("resnet18")
    match = load_checkpoint(model, path)
    assert same(model, backbone)
    assert match.prefix == prefix
    assert not match.missing
    assert not match.mismatched
    if name == "lightning":
        assert "projection_head.layers.0.weight" in match.unused


def test_a_small_image_stem_is_adopted(tmp_path):
    small = resnet18()
    small.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    small.maxpool = nn.Identity()
    torch.save(small.state_dict(), tmp_path / "c.pt")
    loaded = load_model("resnet18", tmp_path / "c.pt")
    assert not loaded.match.mismatched
    assert any("conv1 is 3x3" in note for note in loaded.notes)
    x = torch.randn(2, 3, 16, 16)
    small.fc = nn.Identity()
    torch.testing.assert_close(loaded.model(x), small.eval()(x))


def test_what_does_not_fit_is_listed(tmp_path, backbone):
    state = backbone.state_dict()
    del state["layer4.1.conv2.weight"]
    state["layer1.0.conv1.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight is \(3, 3\), the model's"):
        load_checkpoint(create_backbone("resnet18"), tmp_path / "c.pt")
    match = load_checkpoint(create_backbone("resnet18"), tmp_path / "c.pt", allow_partial=True)
    assert match.missing == ["layer4.1.conv2.weight"]
    assert match.mismatched == ["layer1.0.conv1.weight"]
    assert match.unused == ["fc.weight", "fc.bias"]


class Unsafe:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.b": torch.zeros(2, 2)}, "does not fit the model: it has a.b"),
        ({"epoch": 3}, "holds no tensors and no state dict, only 'epoch'"),
        ({"model": Unsafe()}, "cannot be loaded with weights_only=True"),
        (None, "cannot be loaded with weights_only=True"),
    ],
)
def test_checkpoints_that_are_none(tmp_path, content, message):
    path = tmp_path / "c.ckpt"
    if content is None:
        path.write_bytes(b"no checkpoint")
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(create_backbone("resnet18"), path)


@pytest.mark.parametrize(
    ("arch", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("timm/resnet10t", 512)]
)
def test_backbones_of_torchvision_and_timm_end_in_their_features(arch, width):
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    assert create_backbone(arch).eval()(torch.randn(2, 3, 64, 64)).shape == (2, width)


def test_unknown_backbone():
    with pytest.raises(ValueError, match="got 'resnet17'"):
        create_backbone("resnet17")
