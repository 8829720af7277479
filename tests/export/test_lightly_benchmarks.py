"""Checkpoints with the structure of Lightly's ImageNet benchmarks and of this package's methods.

Module names are those of lightly-ai/lightly (benchmarks/imagenet/resnet50 and vitb16), the heads
Lightly's own. Modules are built without memory; only backbones get numbers, each its own.
"""

import copy
import warnings

import pytest
import torch
from lightly.models.modules import heads
from torch import nn
from torchvision.models import resnet50

from lightly_collapse.export import read_detectron2, to_detectron2, torchvision_state_dict
from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain import methods

# Method -> heads, and the name of the second backbone.
RESNETS = {
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
# Method -> names of the backbones, the one that is exported first; timm's options; other parts.
# In lejepa and visreg the backbone is timm's own, elsewhere Lightly's wrapper around it.
TRANSFORMERS = {
    "aim": (("backbone",), {"patch_size": 14, "class_token": False, "global_pool": "avg"}, ()),
    "capi": (
        ("student_backbone.vit", "teacher_backbone.vit"),
        {"reg_tokens": 16},
        ("predictor.vit",),
    ),
    "dino": (("backbone.vit", "student_backbone.vit"), {}, ()),
    "dinov2, ibot": (
        ("student_backbone.vit", "teacher_backbone.vit"),
        {"init_values": 1e-5},
        (),
    ),
    "lejepa, visreg": (("backbone",), {"num_classes": 0}, ()),
    "mae": (("backbone.vit",), {}, ("decoder",)),
    "pixio": (("backbone.vit",), {"reg_tokens": 7}, ("decoder",)),
}
# The teacher, which is evaluated, is named `backbone` there: either network may be wanted.
OPEN = {"dino"}


def with_numbers(module, *backbones):
    """The state dict of a module without memory: random numbers for backbones, else zeros."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator)
        if name.startswith(backbones) and tensor.is_floating_point()
        else torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in module.state_dict().items()
    }


def export(state, path, second, wanted):
    """Export; where two networks are equally likely, after a refusal that names both."""
    if second is None:
        return to_detectron2(state, path)
    with pytest.raises(ValueError, match="choose by prefix: ") as error:
        to_detectron2(state, path)
    assert f"'{wanted}'" in str(error.value)
    assert second in str(error.value)
    assert "\n" not in str(error.value)
    return to_detectron2(state, path, prefix=wanted)


def assert_is_the_resnet(path, state, prefix):
    for name, tensor in torchvision_state_dict(read_detectron2(path)).items():
        assert torch.equal(tensor, state[prefix + name]), name


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("name", RESNETS)
def test_resnets_of_lightly(name, tmp_path):
    parts, second = RESNETS[name]
    with torch.device("meta"):
        method = nn.Module()
        method.backbone = resnet50()
        method.backbone.fc = nn.Identity()
        if second:
            method.add_module(second, copy.deepcopy(method.backbone))
        for place, head in parts.items():
            method.add_module(place, head())
        method.online_classifier = nn.Linear(2048, 10)
    state = with_numbers(method, "backbone.", *([f"{second}."] if second else []))
    path = tmp_path / "r50.pkl"
    made = export(state, path, second if name in OPEN else None, "backbone.")
    assert (made.prefix, made.shape.name, made.converted) == ("backbone.", "ResNet-50", 265)
    assert_is_the_resnet(path, state, "backbone.")


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_of_lightly(name, tmp_path):
    timm = pytest.importorskip("timm")
    names, options, others = TRANSFORMERS[name]
    settings = {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 3, "num_heads": 3}

    def place(module, target, path):
        *folders, last = path.split(".")
        for folder in folders:
            if not hasattr(target, folder):
                target.add_module(folder, nn.Module())
            target = target.get_submodule(folder)
        target.add_module(last, module)

    method = nn.Module()
    with torch.device("meta"):
        for path in names:
            place(timm.models.VisionTransformer(**settings | options), method, path)
            owner = method.get_submodule(path.rpartition(".")[0])
            if path.endswith(".vit"):
                owner.mask_token = nn.Parameter(torch.zeros(1, 1, 192))
        for path in others:
            place(timm.models.VisionTransformer(**settings), method, path)
            # A decoder takes tokens, not patches.
            del method.get_submodule(path).patch_embed
        method.projection_head = heads.DINOProjectionHead(192)
    state = with_numbers(method, *(f"{path}." for path in names))
    wanted = f"{names[0]}."
    made = export(state, tmp_path / "vit.pkl", names[-1] if name in OPEN else None, wanted)
    assert (made.prefix, made.shape.width, made.shape.depth) == (wanted, 192, 3)
    weights = read_detectron2(tmp_path / "vit.pkl")
    block = "blocks.2.attn.qkv.weight"
    assert (weights[f"backbone.net.{block}"] == state[wanted + block].numpy()).all()
    assert ("register tokens" in str(made.notes)) == ("reg_tokens" in options)


@pytest.mark.parametrize("name", methods.__all__)
def test_methods_of_this_package(name, tmp_path):
    is_vit = name in {"MAE", "IBOT"}
    backbone = BackboneSettings(
        "vit_tiny" if is_vit else "resnet18", image_size=32, patch_size=4 if is_vit else None
    )
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        method = getattr(methods, name)(backbone=backbone, num_classes=3)
    state = with_numbers(method, "backbone.", "teacher", "momentum", "target")
    made = to_detectron2(state, tmp_path / "out.pkl")
    if is_vit:
        assert (made.shape.width, made.shape.depth) == (192, 12)
        assert made.notes == ("patch embedding resized from 4 to 16 pixels",)
        return
    assert (made.prefix, made.shape.name, made.converted) == ("backbone.", "ResNet-18", 100)
    assert_is_the_resnet(tmp_path / "out.pkl", state, "backbone.")


@pytest.mark.parametrize(
    ("backbone", "what_to_do"),
    [
        (BackboneSettings("resnet18", stem="cifar"), "pretrain with the ImageNet stem"),
        (BackboneSettings("resnet18", width=16), "pretrain with width 64"),
        (BackboneSettings("conv4"), "ResNets and plain vision transformers can be exported"),
        (BackboneSettings("wrn28_2"), "the ImageNet stem and four stages, as resnet18"),
    ],
    ids=["cifar stem", "narrow", "conv4", "wrn28_2"],
)
def test_backbones_of_this_package_without_a_detector(backbone, what_to_do, tmp_path):
    method = methods.SimCLR(backbone=backbone, num_classes=3)
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"state_dict": method.state_dict(), "epoch": 1}, checkpoint)
    with pytest.raises(ValueError, match=what_to_do) as error:
        to_detectron2(checkpoint, tmp_path / "out.pkl")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.pkl").exists()
