"""The exported weights and configuration compute what torchvision's ResNet computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torch.nn import functional

from lightly_collapse.export import (
    detectron2_state_dict,
    read_detectron2,
    to_detectron2,
    torchvision_state_dict,
)

ARCHITECTURES = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2")
    ),
]
STEPS_OF_STAGES = (1, 2, 2, 2)


def randomized(model: nn.Module) -> nn.Module:
    """Weights and BatchNorm statistics that no initialisation has, so no mix-up stays unseen."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.2),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def stages(model: nn.Module, image: Tensor) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    return [x := layer(x) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)]


def read_by_scheme(path: Path, image: Tensor) -> list[Tensor]:
    """detectron2's ResNet written down once more, from its naming scheme and configuration."""
    weights = {name: torch.from_numpy(value) for name, value in read_detectron2(path).items()}
    resnets = yaml.safe_load(path.with_suffix(".yaml").read_text())["MODEL"]["RESNETS"]
    assert not resnets["STRIDE_IN_1X1"]
    used = set()

    def convolution(x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        x = functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        norm = [f"{name}.norm.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        used.update([f"{name}.weight", *norm])
        return functional.batch_norm(x, *(weights[key] for key in norm))

    depth = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)} | {
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    x = functional.max_pool2d(convolution(image, "stem.conv1", 2).relu(), 3, 2, 1)
    outputs = []
    for i, blocks in enumerate(depth[resnets["DEPTH"]]):
        for j in range(blocks):
            name, stride = f"res{i + 2}.{j}", STEPS_OF_STAGES[i] if j == 0 else 1
            if resnets["DEPTH"] < 50:
                y = convolution(x, f"{name}.conv1", stride).relu()
                y = convolution(y, f"{name}.conv2", 1)
            else:
                y = convolution(x, f"{name}.conv1", 1).relu()
                y = convolution(y, f"{name}.conv2", stride, resnets["NUM_GROUPS"]).relu()
                y = convolution(y, f"{name}.conv3", 1)
            if f"{name}.shortcut.weight" in weights:
                x = convolution(x, f"{name}.shortcut", stride)
            x = (x + y).relu()
        outputs.append(x)
    assert used == set(weights)
    assert outputs[0].shape[1] == resnets["RES2_OUT_CHANNELS"]
    return outputs


def assert_equal_features(given: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(given) == len(wanted) == 4
    for ours, theirs in zip(given, wanted, strict=True):
        assert theirs.abs().max() > 1e-3
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.fixture(params=ARCHITECTURES)
def exported(request, tmp_path):
    model = randomized(getattr(torchvision.models, request.param)())
    path = tmp_path / "weights.pkl"
    to_detectron2(model.state_dict(), path)
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return path, image, stages(model, image)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_features_equal_torchvision(exported):
    path, image, wanted = exported
    with torch.no_grad():
        assert_equal_features(read_by_scheme(path, image), wanted)
    config = pytest.importorskip(
        "detectron2.config", reason="detectron2 is not installed: only its naming scheme is tested"
    )
    from detectron2.checkpoint import DetectionCheckpointer  # noqa: PLC0415
    from detectron2.layers import ShapeSpec  # noqa: PLC0415
    from detectron2.modeling.backbone import build_resnet_backbone  # noqa: PLC0415

    cfg = config.get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    incompatible = DetectionCheckpointer(backbone).load(str(path))
    assert incompatible["__author__"] == "lightly-collapse"
    with torch.no_grad():
        features = backbone(image)
    assert_equal_features([features[f"res{i}"] for i in (2, 3, 4, 5)], wanted)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("depth", [18, 50])
def test_whole_detector_takes_all_weights(tmp_path, depth, suffix):
    config = pytest.importorskip("detectron2.config", reason="detectron2 is not installed")
    from detectron2.checkpoint import DetectionCheckpointer  # noqa: PLC0415
    from detectron2.modeling import build_model  # noqa: PLC0415

    model = randomized(getattr(torchvision.models, f"resnet{depth}")())
    path = tmp_path / f"weights{suffix}"
    to_detectron2(model, path)
    cfg = config.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    detector = build_model(cfg)
    DetectionCheckpointer(detector).load(str(path))
    bottom_up = detector.backbone.bottom_up.state_dict()
    for name, array in read_detectron2(path).items():
        assert np.array_equal(bottom_up.pop(name).numpy(), array)
    assert all(name.endswith("num_batches_tracked") for name in bottom_up)


def test_pixel_path(tmp_path):
    """An image through the detector's preprocessing is what pretraining's Normalize gave."""
    config = pytest.importorskip("detectron2.config", reason="detectron2 is not installed")
    from detectron2.modeling import build_model  # noqa: PLC0415

    mean, std = (0.6612, 0.6402, 0.7104), (0.0801, 0.0795, 0.0203)
    path = tmp_path / "weights.pkl"
    to_detectron2(torchvision.models.resnet50(), path, pixel_mean=mean, pixel_std=std)
    cfg = config.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    assert cfg.INPUT.FORMAT == "RGB"
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    inputs = build_model(cfg).preprocess_image([{"image": image}]).tensor[0, :, :32, :48]
    wanted = torchvision.transforms.Normalize(mean, std)(image.float() / 255)
    assert (inputs - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_config_is_on_the_255_scale_in_rgb(tmp_path):
    to_detectron2(torchvision.models.resnext50_32x4d(), tmp_path / "x.pkl")
    assert yaml.safe_load((tmp_path / "x.yaml").read_text()) == {
        "VERSION": 2,
        "MODEL": {
            "RESNETS": {
                "DEPTH": 50,
                "NUM_GROUPS": 32,
                "WIDTH_PER_GROUP": 4,
                "RES2_OUT_CHANNELS": 256,
                "STRIDE_IN_1X1": False,
            },
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
        },
        "INPUT": {"FORMAT": "RGB"},
    }


def test_there_and_back():
    state = torchvision.models.resnet50().state_dict()
    back = torchvision_state_dict(detectron2_state_dict(state))
    kept = {n for n in state if not n.startswith("fc.") and "num_batches" not in n}
    assert set(back) == kept
    assert all(torch.equal(back[name], state[name]) for name in kept)


def test_unknown_name_on_the_way_back():
    with pytest.raises(ValueError, match=r"roi_heads\.x is no tensor of a ResNet"):
        torchvision_state_dict({"roi_heads.x": np.zeros(1, np.float32)})
