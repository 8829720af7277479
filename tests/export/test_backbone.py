"""The backbone is found, every tensor of the source accounted for, everything else refused."""

import pickle
import subprocess
import sys

import lightly.models
import pytest
import pytorch_lightning
import torch
import torchvision
from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from lightly_collapse.cli import main
from lightly_collapse.export import to_detectron2, to_torchvision
from lightly_collapse.export.backbone import find_backbone


class SimCLR(pytorch_lightning.LightningModule):
    """As in Lightly's tutorials, with a momentum network."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.backbone_momentum = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 512, 128)


@pytest.fixture(scope="module")
def resnet():
    return torchvision.models.resnet18()


def assert_accounted(source, backbone):
    state = source.state_dict() if isinstance(source, nn.Module) else source
    assert len(backbone.state) + len(backbone.left_out) == len(state)
    assert set(backbone.left_out) < set(state)


def test_module_state_dict_and_children_agree(resnet):
    wanted = find_backbone(resnet)
    assert wanted.prefix == ""
    assert_accounted(resnet, wanted)
    assert {name for name in wanted.left_out if "num_batches" not in name} == {
        "fc.weight",
        "fc.bias",
    }
    children = nn.Sequential(*list(resnet.children())[:-1])
    for source in (
        resnet.state_dict(),
        children,
        children.state_dict(),
        nn.ModuleDict({"encoder_q": resnet, "encoder_key": torchvision.models.resnet18()}),
        {"state_dict": nn.ModuleDict({"module": children}).state_dict(), "epoch": 3},
    ):
        found = find_backbone(source)
        assert found.shape == wanted.shape
        assert set(found.state) == set(wanted.state)
        assert all(torch.equal(found.state[name], wanted.state[name]) for name in wanted.state)


def test_lightning_checkpoint_through_the_command(tmp_path, capsys):
    module = SimCLR()
    trainer = pytorch_lightning.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    output = tmp_path / "r18.pkl"
    arguments = ["export", "--checkpoint", str(tmp_path / "last.ckpt"), "--output", str(output)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "ResNet-18, found under 'backbone.' (also found: 'backbone_momentum.')" in printed
    assert "projection_head.layers (10)" in printed
    assert output.exists()
    assert output.with_suffix(".yaml").exists()
    assert_accounted(module, find_backbone(tmp_path / "last.ckpt"))
    momentum = find_backbone(tmp_path / "last.ckpt", prefix="backbone_momentum")
    assert torch.equal(momentum.state["conv1.weight"], module.backbone_momentum[0].weight)
    plain = tmp_path / "plain.pth"
    assert main([*arguments[:4], str(plain), "--to", "torchvision"]) == 0
    missing = torchvision.models.resnet18().load_state_dict(torch.load(plain), strict=False)
    assert not missing.unexpected_keys
    assert all("fc." in key or "num_batches" in key for key in missing.missing_keys)


def test_half_precision_is_upcast(resnet):
    half = {
        name: t.half() if t.is_floating_point() else t for name, t in resnet.state_dict().items()
    }
    assert find_backbone(half).state["conv1.weight"].dtype == torch.float32


def test_timm(resnet):
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "resnext50_32x4d"):
        model = timm.create_model(name)
        ours = getattr(torchvision.models, name)()
        missing = ours.load_state_dict(find_backbone(model).state, strict=False)
        assert not missing.unexpected_keys
    for name, why in (
        ("resnet18d", "stem of several convolutions"),
        ("resnetaa50", "computes something else"),
        ("seresnet18", "se.*no place"),
        ("resnet26", "blocks; detectron2 knows"),
        ("vit_tiny_patch16_224", "vision transformer"),
        ("convnext_atto", "no ResNet backbone"),
    ):
        with pytest.raises(ValueError, match=why):
            find_backbone(timm.create_model(name))


def cifar_stem(keep_pool):
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    if not keep_pool:
        model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize(
    "source",
    [
        cifar_stem(True),
        cifar_stem(False).state_dict(),
        nn.Sequential(*list(cifar_stem(False).children())[:-1]),
        lightly.models.ResNetGenerator("resnet-18"),
        nn.Sequential(*list(lightly.models.ResNetGenerator("resnet-18").children())[:-1]),
    ],
)
def test_cifar_stem(source):
    with pytest.raises(ValueError, match="CIFAR stem"):
        find_backbone(source)


def test_module_that_computes_something_else(resnet):
    dilated = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
    with pytest.raises(ValueError, match="layer4 computes something else"):
        find_backbone(dilated)
    pool = torchvision.models.resnet18()
    pool.maxpool = nn.Identity()
    with pytest.raises(ValueError, match="layer1 computes something else"):
        find_backbone(pool)


def test_check_leaves_the_module_alone():
    model = torchvision.models.resnet18().train()
    model.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_backbone(model)
    assert model.training
    assert model.layer1.training
    assert not model.layer2.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def changed(state, **changes):
    state = dict(state)
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


def test_every_unexpected_tensor_is_an_error(resnet):
    state = resnet.state_dict()
    for broken, why in (
        (changed(state, layer3__0__attention=torch.zeros(3)), r"layer3\.0\.attention.*no place"),
        (changed(state, layer4__1__bn2__running_var=None), r"layer4\.1\.bn2\.running_var.*missing"),
        (changed(state, layer2__0__conv1__weight=torch.zeros(7, 64, 3, 3)), r"has shape \(7"),
        (changed(state, conv1__weight=torch.zeros(64, 1, 7, 7)), r"conv1 must have shape"),
        (changed(state, bn1__bias=torch.full((64,), torch.nan)), "bn1.bias holds NaN"),
        (changed(state, bn1__bias=torch.zeros(64, dtype=torch.int64)), "floating-point"),
        ({"head.weight": torch.zeros(3, 3)}, "no ResNet backbone in it; its parts are 'head'"),
        ({"epoch": 3}, "holds no tensors and no state dict, only 'epoch'"),
        (torchvision.models.vit_b_16(), "vision transformer"),
    ):
        with pytest.raises(ValueError, match=why):
            find_backbone(broken)


def test_open_choice_names_the_candidates(resnet):
    two = nn.ModuleDict({"a": resnet, "b": torchvision.models.resnet18()})
    with pytest.raises(ValueError, match=r"choose by prefix: 'a\.', 'b\.'"):
        find_backbone(two)
    assert find_backbone(two, prefix="b.").prefix == "b."
    with pytest.raises(ValueError, match=r"no ResNet under 'c\.'; found 'a\.', 'b\.'"):
        find_backbone(two, prefix="c")


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"garbage" * 99, pickle.dumps({"state_dict": Bomb()})])
def test_corrupt_checkpoint_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    arguments = ["export", "--checkpoint", str(path), "--output", str(tmp_path / "out.pkl")]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "bad.ckpt" in captured.err
    assert not (tmp_path / "out.pkl").exists()


def test_truncated_and_missing_checkpoint(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="corrupt"):
        find_backbone(tmp_path / "half.pth")
    with pytest.raises(FileNotFoundError):
        find_backbone(tmp_path / "none.pth")


def test_export_needs_neither_lightly_nor_detectron2():
    code = (
        "import sys; import lightly_collapse.export; "
        "print([m for m in ('lightly', 'pytorch_lightning', 'detectron2') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_wrong_output_and_pixels(tmp_path, resnet):
    state = resnet.state_dict()
    with pytest.raises(ValueError, match=r"path: must end in \.pkl or \.pth, got 'x\.bin'"):
        to_detectron2(state, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="pixel_mean must be three numbers"):
        to_detectron2(
            state, tmp_path / "x.pkl", pixel_mean=[123.7, 116.3, 103.5], pixel_std=[1, 1, 1]
        )
    with pytest.raises(ValueError, match="pixel_std must be three positive"):
        to_detectron2(state, tmp_path / "x.pkl", pixel_mean=[0, 0, 0], pixel_std=[0, 1, 1])
    with pytest.raises(ValueError, match="give both or none"):
        to_detectron2(state, tmp_path / "x.pkl", pixel_mean=[0, 0, 0])
    with pytest.raises(FileNotFoundError):
        to_torchvision(state, tmp_path / "no" / "x.pth")
    assert list(tmp_path.iterdir()) == []
