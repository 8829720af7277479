"""The axis of the channels, over families of torchvision and timm, against widths known by hand."""

from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import nn

from lightly_collapse.metrics import hidden_features
from lightly_collapse.metrics.channels import channel_axis

TORCHVISION = {
    "resnet18": {"conv1": 64, "bn1": 64, "relu": 64, "layer1": 64, "layer4": 512},
    "convnext_tiny": {
        "features.1": 96,
        "features.1.0": 96,
        "features.1.0.block": 96,
        "features.1.0.block.3": 384,
        "features.1.0.block.5": 96,
        "features.7": 768,
        "features.6.0": 384,
    },
    "swin_t": {
        "features.0": 96,
        "features.1": 96,
        "features.1.0.mlp.0": 384,
        "features.2": 192,
        "features.7": 768,
        "norm": 768,
        "permute": 768,
    },
    "swin_v2_t": {"features.7": 768, "features.4": 384},
    "vit_b_32": {"conv_proj": 768, "encoder": 768, "encoder.layers.encoder_layer_3": 768},
    "efficientnet_b0": {"features.0": 32, "features.3": 40, "features": 1280},
    "mobilenet_v3_small": {"features.3": 24, "features": 576},
    "regnet_y_400mf": {"stem": 32, "trunk_output": 440},
    "densenet121": {"features.denseblock1": 256, "features": 1024},
}
TIMM = {
    "swin_tiny_patch4_window7_224": {"patch_embed": 96, "layers.0": 96, "layers.3": 768},
    "convnext_atto": {"stem": 40, "stages.0": 40, "stages.3": 320, "stages.3.blocks.1.mlp": 320},
    "vit_tiny_patch16_224": {"blocks.3": 192, "blocks.3.mlp.fc1": 768, "norm": 192},
    "mixer_s32_224": {"blocks.2": 512, "norm": 512},
    "poolformer_s12": {"stages.0": 64, "stages.3": 512},
    "resnet10t": {"layer1": 64, "layer4": 512},
    "mobilenetv3_small_050": {"blocks.2": 24, "conv_stem": 16},
    "maxvit_rmlp_pico_rw_256": {"stages.0": 32, "stages.3": 256},
}


# Families whose stages timm itself names with their widths (`feature_info`).
TIMM_WITH_WIDTHS = [
    "resnet18",
    "test_byobnet",
    "test_convnext",
    "test_nfnet",
    "test_maxvit",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "regnetx_002",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "mixer_s32_224",
    "poolformer_s12",
    "hiera_tiny_224",
    "davit_tiny",
    "focalnet_tiny_srf",
    "mambaout_femto",
    "pvt_v2_b0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "caformer_s18",
    "inception_next_atto",
    "nest_tiny",
    "coatnet_0_224",
    "volo_d1_224",
    "vgg11",
]


def widths(model, layers, size):
    # On the meta device there are shapes and no numbers: hundreds of layers in seconds.
    with torch.device("meta"):
        features = hidden_features(model.eval(), torch.zeros(2, 3, size, size), layers)
    return {name: rows.shape for name, rows in features.items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_families_of_torchvision(name):
    # RegNet computes its widths with tensors, which the meta device cannot.
    with nullcontext() if "regnet" in name else torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None).to("meta")
    found = widths(model, TORCHVISION[name], 224 if "vit" in name else 96)
    assert found == {layer: (2, width) for layer, width in TORCHVISION[name].items()}


def timm_model(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0)


@pytest.mark.parametrize("name", TIMM)
def test_families_of_timm(name):
    model = timm_model(name)
    found = widths(model, TIMM[name], model.default_cfg["input_size"][-1])
    assert found == {layer: (2, width) for layer, width in TIMM[name].items()}


@pytest.mark.parametrize("name", TIMM_WITH_WIDTHS)
def test_families_of_timm_have_the_widths_that_timm_says(name):
    model = timm_model(name)
    stages = {stage["module"]: (2, stage["num_chs"]) for stage in model.feature_info}
    assert widths(model, list(stages), model.default_cfg["input_size"][-1]) == stages


def test_the_values_are_those_taken_by_hand():
    model = torchvision.models.swin_t(weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        by_hand = model.features(x).mean(dim=(1, 2))  # (n, h, w, c)
        found = hidden_features(model, x, ["features"])["features"]
    torch.testing.assert_close(found, by_hand)


def test_the_values_of_inner_layers_are_those_taken_by_hand():
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_convnext", num_classes=0).eval()
    outputs = {}
    names = ["stages.1", "stages.1.blocks.0.mlp.fc1", "stages.1.blocks.0.norm"]
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.__setitem__(name, output.detach())
        )
    found = hidden_features(model, torch.randn(2, 3, 96, 96), names)
    positions = {"stages.1": (2, 3), names[1]: (1, 2), names[2]: (1, 2)}  # n c h w; n h w c
    for name in names:
        assert outputs[name].ndim == 4
        torch.testing.assert_close(found[name], outputs[name].mean(dim=positions[name]))
    convolution = nn.Conv1d(3, 5, 1)
    x = torch.randn(2, 3, 7)
    every = hidden_features(convolution, x, [""], tokens="all")[""]
    torch.testing.assert_close(every, convolution(x).detach().transpose(1, 2).reshape(14, 5))


def test_what_the_layers_around_a_layer_without_weights_say():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout())
    for layer in net:
        assert channel_axis(layer, (2, 8, 8, 8), net) == 1
    mlp = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 8))
    assert channel_axis(mlp[1], (2, 8, 8, 8), mlp) == -1
    # A concatenation, wider than its layers, of which one is as wide as the map is high.
    dense = nn.Sequential(nn.Conv2d(64, 32, 1), nn.BatchNorm2d(32))
    with pytest.raises(ValueError, match="channels must say"):
        channel_axis(dense, (2, 96, 24, 32))
    # Convolutions alone, permuted to channels last.
    assert channel_axis(dense, (2, 7, 7, 32)) == -1


class LayerNorm2d(nn.LayerNorm):
    """As timm's and torchvision's: of (n, c, h, w)."""


def test_norms_of_both_conventions():
    assert channel_axis(nn.LayerNorm(8), (2, 8, 8, 8)) == -1
    assert channel_axis(nn.RMSNorm(8), (2, 8, 8, 8)) == -1
    assert channel_axis(LayerNorm2d(8), (2, 8, 8, 8)) == 1
    assert channel_axis(nn.GroupNorm(2, 8), (2, 8, 8)) == 1


def test_as_many_channels_as_pixels():
    # 64 channels of 64 x 64 pixels: the shape says nothing, the layers do.
    convolutions = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.ReLU())
    assert channel_axis(convolutions, (2, 64, 64, 64)) == 1
    assert channel_axis(nn.Conv1d(3, 8, 1), (2, 8, 8)) == 1
    assert channel_axis(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), (2, 8, 8, 8)) == -1
    mixed = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"channels must say which axis .* \(2, 8, 8, 8\)"):
        channel_axis(mixed, (2, 8, 8, 8))
    with pytest.raises(ValueError, match="channels must say"):
        channel_axis(nn.Identity(), (2, 8, 4, 4))


def test_a_named_axis_goes_before_what_is_found():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 8))
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="channels must say"):
        hidden_features(net, x, [""])
    y = net(x).detach()
    torch.testing.assert_close(
        hidden_features(net, x, [""], channels="last")[""], y.mean(dim=(1, 2))
    )
    named = hidden_features(net, x, ["", "0"], channels={"": "last"})
    torch.testing.assert_close(named[""], y.mean(dim=(1, 2)))
    assert named["0"].shape == (2, 8)
