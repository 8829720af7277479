"""Checkpoints with the structure of Lightly's ResNet-50 benchmarks (benchmarks/imagenet/resnet50).

Module names are those of lightly-ai/lightly; the heads are Lightly's own, the weights random.
"""

import copy

import pytest
import torch
from lightly.models.modules import heads
from torch import nn
from torchvision.models import resnet50

from lightly_collapse.export import read_detectron2, to_detectron2, torchvision_state_dict

# Method -> heads, and the name of the second backbone.
BENCHMARKS = {
    "barlowtwins": ({"projection_head": heads.BarlowTwinsProjectionHead}, None),
    "byol": (
        {
            "projection_head": heads.BYOLProjectionHead,
            "prediction_head": heads.BYOLPredictionHead,
            "teacher_projection_head": heads.BYOLProjectionHead,
        },
        "teacher_backbone",
    ),
    "dcl, dclw, simclr": ({"projection_head": heads.SimCLRProjectionHead}, None),
    "dino": (
        {
            "projection_head": heads.DINOProjectionHead,
            "student_projection_head": heads.DINOProjectionHead,
        },
        "student_backbone",
    ),
    "mocov2": (
        {
            "projection_head": heads.MoCoProjectionHead,
            "key_projection_head": heads.MoCoProjectionHead,
        },
        "key_backbone",
    ),
    "swav": (
        {"projection_head": heads.SwaVProjectionHead, "prototypes": heads.SwaVPrototypes},
        None,
    ),
    "tico": (
        {
            "projection_head": heads.TiCoProjectionHead,
            "projection_head_momentum": heads.TiCoProjectionHead,
        },
        "backbone_momentum",
    ),
    "vicreg": ({"projection_head": heads.VICRegProjectionHead}, None),
}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    net = resnet50()
    net.fc = nn.Identity()
    return net


@pytest.mark.parametrize("name", BENCHMARKS)
def test_exported(name, backbone, tmp_path):
    parts, second = BENCHMARKS[name]
    method = nn.Module()
    method.backbone = backbone
    if second:
        other = copy.deepcopy(backbone)
        nn.init.zeros_(other.conv1.weight)
        method.add_module(second, other)
    for place, head in parts.items():
        method.add_module(place, head())
    method.online_classifier = nn.Linear(2048, 10)
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"state_dict": method.state_dict(), "epoch": 1}, checkpoint)
    # DINO evaluates `backbone`, the teacher; both networks may be wanted.
    prefix = "backbone." if name == "dino" else None
    export = to_detectron2(checkpoint, tmp_path / "r50.pkl", prefix=prefix)
    assert (export.prefix, export.shape.name, export.converted) == ("backbone.", "ResNet-50", 265)
    given = torchvision_state_dict(read_detectron2(tmp_path / "r50.pkl"))
    for key, tensor in given.items():
        assert torch.equal(tensor, backbone.state_dict()[key]), key
