"""Class token and patches told apart: timm, torchvision, transformers, Lightly."""

import pytest
import torch
from torch import nn

from lightly_collapse.metrics import FeatureHooks, hidden_features
from lightly_collapse.metrics.prefix_tokens import PrefixTokens, prefix_tokens

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timm_vit(**settings):
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.models.vision_transformer.VisionTransformer(num_classes=0, **small, **settings)


def timm_eva(**settings):
    """DINOv3's class in timm, whose attention layers know the number of prefix tokens too."""
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return timm.models.eva.Eva(num_classes=0, global_pool="avg", **small, **settings)


def transformers_model(kind, **settings):
    transformers = pytest.importorskip("transformers")
    small = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = getattr(transformers, f"{kind}Config")(**small, **settings)
    return getattr(transformers, f"{kind}Model")(config)


def torchvision_vit():
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 32)


def lightly_vit(kind):
    modules = pytest.importorskip("lightly.models.modules")
    if kind == "timm":
        return modules.MaskedVisionTransformerTIMM(vit=timm_vit())
    return modules.MaskedVisionTransformerTorchvision(vit=torchvision_vit())


# Builder, layer that gives a sequence, number of prefix tokens, whether there is a class token.
MODELS = {
    "timm": (timm_vit, "blocks.1", 1, True),
    "timm, registers": (lambda: timm_vit(reg_tokens=4), "norm", 5, True),
    "timm, no class token": (
        lambda: timm_vit(class_token=False, global_pool="avg"),
        "blocks.1",
        0,
        False,
    ),
    "timm, EVA with registers": (lambda: timm_eva(num_reg_tokens=4), "blocks.1", 5, True),
    "torchvision": (torchvision_vit, "encoder.ln", 1, True),
    "ViT": (lambda: transformers_model("ViT"), "", 1, True),
    "DINOv2": (lambda: transformers_model("Dinov2"), "layernorm", 1, True),
    "DINOv2, registers": (
        lambda: transformers_model("Dinov2WithRegisters", num_register_tokens=3),
        "layernorm",
        4,
        True,
    ),
    "DINOv3": (lambda: transformers_model("DINOv3ViT", num_register_tokens=4), "", 5, True),
    "Lightly, timm": (lambda: lightly_vit("timm"), "vit.blocks.1", 1, True),
    "Lightly, torchvision": (lambda: lightly_vit("torchvision"), "vit.encoder.ln", 1, True),
}


@pytest.mark.parametrize("name", MODELS)
def test_class_token_and_patches_are_those_taken_by_hand(name):
    build, layer, count, has_class_token = MODELS[name]
    model = build().eval()
    assert prefix_tokens(model, layer) == PrefixTokens(count, has_class_token)
    outputs = []
    model.get_submodule(layer).register_forward_hook(lambda _, __, z: outputs.append(z))
    found = hidden_features(model, IMAGES, [layer], "auto")
    z = outputs[-1]
    z = (z if isinstance(z, torch.Tensor) else z["last_hidden_state"]).detach()
    assert z.shape == (3, 16 + count, 24)
    patches = z[:, count:]
    if has_class_token:
        torch.testing.assert_close(found[f"{layer}.cls"], z[:, 0])
        torch.testing.assert_close(found[f"{layer}.patch"], patches.reshape(48, 24))
    else:
        torch.testing.assert_close(found[layer], patches.mean(dim=1))
    every = hidden_features(model, IMAGES, [layer], "all")[layer]
    torch.testing.assert_close(every, z.flatten(0, 1))
    mean = hidden_features(model, IMAGES, [layer], "mean")[layer]
    torch.testing.assert_close(mean, patches.mean(dim=1))


def test_a_mapping_is_given_to_the_model_by_name():
    model = transformers_model("ViT").eval()
    found = hidden_features(model, {"pixel_values": IMAGES}, ["layernorm"], "cls")
    torch.testing.assert_close(
        found["layernorm"], model(pixel_values=IMAGES).last_hidden_state[:, 0].detach()
    )


def test_patch_embeddings_have_no_prefix():
    model = timm_vit().eval()
    found = hidden_features(model, IMAGES, ["patch_embed"], "patch")["patch_embed"]
    assert found.shape == (48, 24)
    assert prefix_tokens(model, "patch_embed", 16) == PrefixTokens()


def test_no_class_token_to_take_and_a_number_by_hand():
    net = nn.Sequential(nn.Linear(4, 6))
    x = torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match='tokens="cls" needs a sequence with a class token'):
        hidden_features(net, x, ["0"], "cls")
    seen = {}
    with FeatureHooks(net, ["0"], seen.__setitem__, prefix=2):
        y = net(x).detach()
    torch.testing.assert_close(seen["0.cls"], y[:, 0])
    torch.testing.assert_close(seen["0.patch"], y[:, 2:].flatten(0, 1))
