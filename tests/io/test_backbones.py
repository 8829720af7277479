"""Backbones: torchvision's own at width 64, scaled otherwise, and refused by name."""

import pytest
import torch
import torchvision

from lightly_collapse.io.backbones import BACKBONES, BackboneSettings, create_backbone


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_published_width_is_torchvisions_resnet(name):
    ours = create_backbone(BackboneSettings(name)).eval()
    theirs = getattr(torchvision.models, name)()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    assert ours.feature_dim == ours(x).shape[1]


@pytest.mark.parametrize(("width", "stem"), [(16, "cifar"), (16, "imagenet"), (96, "cifar")])
def test_width_scales_every_stage(width, stem):
    backbone = create_backbone(BackboneSettings("resnet18", stem=stem, width=width)).eval()
    planes = [getattr(backbone, f"layer{i}")[-1].conv2.out_channels for i in (1, 2, 3, 4)]
    assert planes == [width, 2 * width, 4 * width, 8 * width]
    assert backbone.feature_dim == 8 * width
    assert backbone(torch.rand(1, 3, 32, 32)).shape == (1, 8 * width)
    assert backbone.conv1.stride == ((1, 1) if stem == "cifar" else (2, 2))
    spread = backbone.conv1.weight.std()
    fan_out = width * backbone.conv1.kernel_size[0] ** 2
    assert float(spread) == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)


def test_a_cifar_stem_keeps_the_resolution():
    backbone = create_backbone(BackboneSettings("resnet18", stem="cifar", width=8))
    assert backbone.maxpool(backbone.conv1(torch.rand(1, 3, 32, 32))).shape[-1] == 32


def test_vit_is_torchvisions():
    settings = BackboneSettings("vit_tiny", image_size=32, patch_size=8)
    backbone = create_backbone(settings).eval()
    assert backbone.feature_dim == 192
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 192)


def test_zero_init_residual():
    backbone = create_backbone(BackboneSettings("resnet18", width=8, zero_init_residual=True))
    assert not backbone.layer1[0].bn2.weight.any()


def test_timm():
    pytest.importorskip("timm")
    backbone = create_backbone(BackboneSettings("timm/resnet10t"))
    assert backbone.eval()(torch.rand(1, 3, 64, 64)).shape == (1, backbone.feature_dim)
    with pytest.raises(ValueError, match="got 'timm/nonsense'"):
        create_backbone(BackboneSettings("timm/nonsense"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (BackboneSettings("resnet19"), ", ".join(BACKBONES)),
        (BackboneSettings("resnet18", width=0), "width must be at least 1, got 0"),
        (BackboneSettings("vit_tiny", image_size=30, patch_size=8), "multiple of patch_size"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        create_backbone(settings)
