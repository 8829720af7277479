"""Vision transformers in ViTDet's form: the features of the source, in both trainers' backbones."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from torch.nn import functional

from detection.torchvision.vit import ViT, resize_positions
from lightly_collapse.export import to_detectron2
from lightly_collapse.export.vit import find_vit, resize_patch_kernel


def randomized(model):
    """Every parameter random, so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.05 * noise if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model.eval()


def timm_vit(**options):
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 4}
    return randomized(timm.models.VisionTransformer(**{**small, "num_classes": 0, **options}))


def ours(model, window=0, **options):
    found = find_vit(model, **options)
    shape = found.shape
    net = ViT(
        16, shape.width, shape.depth, shape.heads, shape.mlp_ratio, shape.pretrain_size, window, ()
    )
    net.load_state_dict(found.state)
    return net.eval()


def patch_features(model, image):
    """timm's own blocks on the patches alone, before the last norm."""
    x = model.patch_embed(image)
    x = x + model.pos_embed[:, -x.shape[1] :]
    for block in model.blocks:
        x = block(x)
    side = round(x.shape[1] ** 0.5)
    return x.transpose(1, 2).reshape(len(x), -1, side, side)


def close(a, b, tolerance=1e-4):
    return (a - b).abs().max() <= tolerance * b.abs().max()


IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 0.1},
        {"no_embed_class": True, "reg_tokens": 4},
        {"qkv_bias": False},
        {"mlp_ratio": 2.0},
    ],
)
@torch.no_grad()
def test_features_of_timm(options):
    model = timm_vit(**options)
    assert close(ours(model)(IMAGE), patch_features(model, IMAGE))


@torch.no_grad()
def test_without_a_class_token_the_whole_model_is_the_same():
    model = timm_vit(class_token=False, global_pool="avg", fc_norm=True)
    tokens = model.forward_features(IMAGE)  # the last norm is the identity with fc_norm
    assert close(ours(model)(IMAGE).flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_features_of_torchvision():
    model = randomized(
        torchvision.models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
        )
    )
    x = model.conv_proj(IMAGE).flatten(2).transpose(1, 2) + model.encoder.pos_embedding[:, 1:]
    for layer in model.encoder.layers:
        x = layer(x)
    assert close(ours(model)(IMAGE).flatten(2).transpose(1, 2), x)
    # Under a prefix, as a state dict: the heads are not shown and have to be given.
    state = {f"backbone.vit.{name}": tensor for name, tensor in model.state_dict().items()}
    found = find_vit(state, heads=4)
    assert (found.prefix, found.shape.heads, found.is_checked) == ("backbone.vit.", 4, False)
    whole = find_vit(model)
    assert whole.is_checked
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in whole.state.items())
    assert {name.removeprefix("backbone.vit.") for name in found.left_out} == {
        *("class_token", "encoder.ln.weight", "encoder.ln.bias"),
        *("heads.head.weight", "heads.head.bias"),
    }


@torch.no_grad()
def test_larger_patches_see_the_same_in_resized_patches():
    kernel = torch.randn(8, 3, 14, 14)
    patch = torch.randn(1, 3, 14, 14)
    resized = functional.interpolate(patch.double(), size=(16, 16), mode="bicubic")
    new = resize_patch_kernel(kernel.double(), 16)
    wanted = functional.conv2d(patch.double(), kernel.double())
    assert close(functional.conv2d(resized, new), wanted, 1e-9)


def test_dinov2_gets_patches_of_16_and_keeps_its_positions():
    model = timm_vit(img_size=70, patch_size=14, init_values=1e-5)
    found = find_vit(model)
    assert found.shape.pretrain_size == 5 * 16
    assert torch.equal(found.state["pos_embed"], model.pos_embed[:, 1:])
    assert "patch embedding resized from 14 to 16 pixels" in found.notes
    assert "LayerScale multiplied into the 6 layers before it" in found.notes


@torch.no_grad()
def test_positions_on_another_grid():
    positions = torch.randn(1, 16, 8)
    assert torch.equal(resize_positions(positions, 4, 4).reshape(1, 16, 8), positions)
    constant = resize_positions(torch.ones(1, 16, 8), 7, 5)
    assert constant.shape == (1, 7, 5, 8)
    assert torch.allclose(constant, torch.ones(()))


@torch.no_grad()
def test_windows_do_not_see_each_other():
    net = ours(timm_vit(img_size=96), window=3)
    image = torch.randn(1, 3, 96, 96)
    changed = image.clone()
    changed[..., :48, :48] += 1  # the first window of 3 x 3 patches
    gap = (net(image) - net(changed)).abs().amax(dim=(0, 1))
    assert gap[:3, :3].min() > 1e-3
    assert gap[3:].max() == 0
    assert gap[:, 3:].max() == 0


@pytest.mark.parametrize("size", [(64, 64), (80, 112)])
@pytest.mark.parametrize("window", [0, 3])
@torch.no_grad()
def test_detectron2_computes_the_same(size, window, tmp_path):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.modeling import build_backbone  # noqa: PLC0415

    import detection.detectron2.vit  # noqa: F401, PLC0415
    from detection.detectron2.checkpointer import Checkpointer  # noqa: PLC0415
    from detection.detectron2.config import _merge_file, default_config  # noqa: PLC0415

    model = timm_vit(init_values=0.1)
    to_detectron2(model, tmp_path / "vit.pkl")
    cfg = default_config()
    _merge_file(cfg, str(tmp_path / "vit.yaml"))
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_vit_pyramid_backbone"])
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.VIT.DROP_PATH", 0.0])
    cfg.merge_from_list(["MODEL.VIT.GLOBAL_BLOCKS", [], "MODEL.VIT.WINDOW_SIZE", window])
    detector = torch.nn.Module()
    detector.backbone = build_backbone(cfg)
    Checkpointer(detector).load(str(tmp_path / "vit.pkl"))
    image = torch.randn(1, 3, *size)
    theirs = detector.backbone.eval().net(image)["last_feat"]
    assert close(theirs, ours(model, window)(image))
    if size == (64, 64) and not window:
        assert close(theirs, patch_features(model, image))


@torch.no_grad()
def test_the_pyramid_is_detectron2_s():
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.modeling import build_backbone  # noqa: PLC0415

    import detection.detectron2.vit  # noqa: F401, PLC0415
    from detection.detectron2.config import default_config  # noqa: PLC0415
    from detection.torchvision.config import load_config  # noqa: PLC0415
    from detection.torchvision.vit import build_vit_pyramid  # noqa: PLC0415

    overrides = {
        "EMBED_DIM": 32,
        "DEPTH": 2,
        "NUM_HEADS": 2,
        "GLOBAL_BLOCKS": [1],
        "DROP_PATH": 0.0,
    }
    cfg = default_config()
    for key, value in overrides.items():
        cfg.MODEL.VIT[key] = value
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_vit_pyramid_backbone", 0
    theirs = randomized(build_backbone(cfg))
    config = load_config("configs/detection/small_ViT.yaml")
    config["MODEL"]["VIT"] |= overrides | {"WINDOW_SIZE": 14}
    config["MODEL"]["FPN"]["OUT_CHANNELS"] = 256
    pyramid = build_vit_pyramid(config).eval()
    pyramid.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 96, 64)
    for (_, a), (_, b) in zip(theirs(image).items(), pyramid(image).items(), strict=True):
        assert close(b, a)


def test_the_file_and_its_fragment(tmp_path):
    export = to_detectron2(timm_vit(init_values=0.1).state_dict(), tmp_path / "vit.pkl", heads=4)
    assert export.shape.name == "ViT of width 64, 3 blocks, 4 heads"
    assert "LayerScale multiplied" in export.summary()
    assert "heads (4 assumed)" in export.summary()
    arrays = pickle.loads((tmp_path / "vit.pkl").read_bytes())["model"]
    assert arrays["backbone.net.pos_embed"].shape == (1, 16, 64)
    assert all(array.dtype == np.float32 for array in arrays.values())
    section = yaml.safe_load((tmp_path / "vit.yaml").read_text())["MODEL"]["VIT"]
    assert section["NUM_HEADS"] == 4
    assert section["PRETRAIN_SIZE"] == 64


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"blocks.0.attn.q_norm.weight": torch.ones(16)}, "no place in ViTDet"),
        ({"blocks.1.mlp.fc2.bias": None}, r"blocks\.1\.mlp\.fc2\.bias is missing"),
        ({"pos_embed": None}, "no learned position embedding"),
        ({"pos_embed": torch.zeros(1, 19, 64)}, "no square grid"),
        ({"blocks.2.norm1.bias": torch.full((64,), torch.nan)}, "NaN"),
        ({"patch_embed.proj.weight": torch.zeros(64, 1, 16, 16)}, "patch embedding must have"),
    ],
)
def test_what_is_refused(change, why):
    state = timm_vit().state_dict() | change
    with pytest.raises(ValueError, match=why):
        find_vit({name: tensor for name, tensor in state.items() if tensor is not None}, heads=4)


def test_names_of_training_checkpoints():
    state = timm_vit(init_values=1e-5).state_dict()
    plain = find_vit(state, heads=4).state
    # DINOv2's FSDP checkpoints: block 2 in the second chunk of two.
    chunked = {
        re.sub(r"^blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): tensor
        for name, tensor in state.items()
    }
    assert "blocks.1.2.norm1.weight" in chunked
    found = find_vit({f"backbone.{name}": tensor for name, tensor in chunked.items()}, heads=4)
    assert found.prefix == "backbone."
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.state.items())
    # A masked autoencoder's decoder, beside the encoder or as a network of its own.
    decoder = {
        f"decoder_blocks.0.{name}": tensor
        for name, tensor in timm_vit().blocks[0].state_dict().items()
    }
    decoder |= {"decoder_pos_embed": torch.zeros(1, 17, 64), "mask_token": torch.zeros(1, 1, 64)}
    found = find_vit(state | decoder, heads=4)
    assert set(decoder) < set(found.left_out)
    inside = {f"vit.{name}": tensor for name, tensor in state.items()}
    inside |= {f"decoder.{n}": t for n, t in timm_vit().state_dict().items() if "patch" not in n}
    assert find_vit(inside, heads=4).candidates == ("vit.",)


def test_modules_that_compute_something_else():
    with pytest.raises(ValueError, match="compute something else than a ViT's with 4 heads"):
        find_vit(timm_vit(block_fn=timm.models.vision_transformer.ResPostBlock))
    with pytest.raises(ValueError, match="epsilon 1e-05"):
        find_vit(timm_vit(norm_layer=torch.nn.LayerNorm))
    with pytest.raises(ValueError, match="ViTDet's is GELU"):
        find_vit(timm_vit(act_layer=torch.nn.ReLU))
    with pytest.raises(ValueError, match="cannot be split into"):
        find_vit(timm_vit(embed_dim=60).state_dict())
    assert find_vit(torchvision.models.resnet18()) is None
    # Stages of blocks without a patch embedding of their own.
    assert find_vit(timm.create_model("swin_tiny_patch4_window7_224")) is None
