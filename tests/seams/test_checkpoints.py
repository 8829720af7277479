"""Every way a checkpoint comes into being against every consumer.

Each gives the features of the module that was saved, or refuses in one line that says what to do.
"""

import copy
import io
import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint.metadata as dcp
import torchvision
from safetensors.torch import save_file
from torch.distributed.checkpoint import filesystem

from detection.results import RunRecord
from detection.torchvision.config import load_config
from detection.torchvision.model import build_model
from detection.torchvision.weights import load_weights
from lightly_collapse.export import read_detectron2, to_detectron2, to_torchvision
from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO
from lightly_collapse.pretrain.methods import (
    BYOL,
    DINO,
    MAE,
    BarlowTwins,
    DirectCLR,
    MoCo,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)
from tests.seams.checkpoint_forms import FORMS, noise, tensors, under

CIFAR = BackboneSettings("resnet18", stem="cifar", width=4)
NARROW = BackboneSettings("resnet18", width=4)
VIT = BackboneSettings("vit_tiny", image_size=16, patch_size=4)
PUBLISHED = BackboneSettings("resnet18")
BACKBONES = {"cifar": CIFAR, "narrow": NARROW, "vit": BackboneSettings("timm/test_vit")}
SMALL = {"backbone": CIFAR, "hidden_dim": 16, "output_dim": 8}
METHODS = {
    "SimCLR": lambda: SimCLR(backbone=CIFAR),
    "DirectCLR": lambda: DirectCLR(loss_dim=8, backbone=CIFAR),
    "MoCo": lambda: MoCo(queue_size=32, **SMALL),
    "BYOL": lambda: BYOL(**SMALL),
    "SimSiam": lambda: SimSiam(prediction_dim=8, **SMALL),
    "BarlowTwins": lambda: BarlowTwins(**SMALL),
    "VICReg": lambda: VICReg(**SMALL),
    "SwAV": lambda: SwAV(prototypes=12, **SMALL),
    "DINO": lambda: DINO(bottleneck_dim=8, **SMALL),
    "MAE": lambda: MAE(decoder_layers=1, decoder_heads=2, decoder_dim=16, backbone=VIT),
}


def trained(net):
    """A network whose statistics and weights are none that a fresh one has."""
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return net.eval()


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("timm")
    return {name: trained(create_backbone(s)) for name, s in BACKBONES.items()}


@pytest.fixture(scope="module")
def published():
    return trained(create_backbone(PUBLISHED))


@torch.no_grad()
def assert_same_features(loaded, net, size=16):
    images = torch.rand(2, 3, size, size)
    wanted = net(images)
    torch.testing.assert_close(
        loaded(images), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max())
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_form_gives_the_features_that_were_saved(tmp_path, networks, backbone, form):
    net = networks[backbone]
    path = FORMS[form](net, tmp_path)
    name = BACKBONES[backbone].name
    if form == "lightly children" and backbone == "vit":
        # A Sequential of its children loses a ViT's class token and position embedding.
        with pytest.raises(ValueError, match=r"lacks \d+ of the model's \d+ tensors: cls_token"):
            load_model(name, path)
        return
    loaded = load_model(name, path)
    assert loaded.match.loaded == len(net.state_dict())
    assert not loaded.match.missing
    assert_same_features(loaded.model, net, loaded.image_size or 16)
    assert loaded.image_size == (160 if backbone == "vit" else None)


@pytest.mark.parametrize("form", ["plain", "lightning", "safetensors"])
def test_the_image_and_patch_size_of_a_vit_are_read_from_its_tensors(tmp_path, form):
    net = trained(create_backbone(VIT))
    loaded = load_model("vit_tiny", FORMS[form](net, tmp_path))
    assert_same_features(loaded.model, net)
    assert loaded.image_size == 16


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_exported(tmp_path, published, form):
    path = FORMS[form](published, tmp_path)
    export = to_torchvision(path, tmp_path / "out.pth")
    plain = torchvision.models.resnet18()
    plain.fc = torch.nn.Identity()
    plain.load_state_dict(torch.load(export.weights), strict=False)
    assert_same_features(plain.eval(), published, 32)


@pytest.mark.parametrize("form", ["plain", "lightning", "lightly children", "distributed"])
@pytest.mark.parametrize(
    ("backbone", "why"),
    [
        ("cifar", "CIFAR stem.*: pretrain with the ImageNet stem"),
        ("narrow", "width 4.*: pretrain with width 64"),
    ],
)
def test_what_detectron2_has_no_place_for_is_refused(tmp_path, networks, backbone, why, form):
    path = FORMS[form](networks[backbone], tmp_path)
    with pytest.raises(ValueError, match=why) as error:
        to_detectron2(path, tmp_path / "none.pkl")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "none.pkl").exists()


@pytest.mark.parametrize("form", ["plain", "lightning", "distributed"])
def test_a_transformer_is_exported(tmp_path, networks, form):
    module = networks["vit"]
    heads = module.blocks[0].attn.num_heads
    wanted = to_detectron2(module, tmp_path / "module.pkl")
    export = to_detectron2(FORMS[form](module, tmp_path), tmp_path / "vit.pkl", heads=heads)
    assert export.shape == wanted.shape
    ours, theirs = (read_detectron2(tmp_path / name) for name in ("vit.pkl", "module.pkl"))
    assert all((ours[name] == array).all() for name, array in theirs.items())


def checkpoint_of(method, folder):
    checkpoint = {"state_dict": method.state_dict(), "epoch": 3}
    method.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("arch", [None, "named"])
def test_every_method_of_pretrain(tmp_path, name, arch):
    torch.manual_seed(0)
    method = METHODS[name]()
    trained(method)
    for parameter in method.backbone.parameters():
        parameter.data.add_(0.01)  # other than its momentum copy's
    path = checkpoint_of(method, tmp_path)
    settings = method.backbone_settings
    loaded = load_model(settings.name if arch else None, path)
    assert_same_features(loaded.model, method.backbone)
    assert loaded.pretrained.method == name
    assert loaded.pretrained.backbone == settings
    assert loaded.match.prefix == "backbone."
    assert loaded.arch == settings.name
    with pytest.raises(ValueError, match=f"is of the architecture {settings.name}, not resnet50"):
        load_model("resnet50", path)


@pytest.mark.parametrize("name", ["MoCo", "BYOL", "DINO"])
def test_the_momentum_network_can_be_asked_for(tmp_path, name):
    method = METHODS[name]()
    trained(method)
    for parameter in method.backbone.parameters():
        parameter.data.add_(0.01)
    loaded = load_model(None, checkpoint_of(method, tmp_path))
    (other,) = loaded.match.others
    again = load_model(None, tmp_path / "last.ckpt", prefix=other)
    momentum = method.get_submodule(other.rstrip("."))
    assert_same_features(again.model, momentum)
    assert "momentum" in other or "teacher" in other
    assert any(repr(other) in note for note in loaded.notes)


def test_a_detector_starts_from_an_exported_checkpoint(tmp_path, published):
    method = SimCLR(backbone=PUBLISHED)
    method.backbone.load_state_dict(published.state_dict())
    export = to_detectron2(checkpoint_of(method, tmp_path), tmp_path / "r18.pkl")
    config = load_config("configs/detection/small.yaml", ["MODEL.WEIGHTS", str(export.weights)])
    torch.manual_seed(1)
    detector = build_model(config)
    load_weights(config, detector, RunRecord(tmp_path, ["cell"], resume=False), partial=False)
    images = torch.rand(1, 3, 64, 64)
    stem = published.maxpool(published.relu(published.bn1(published.conv1(images))))
    with torch.no_grad():
        body = detector.eval().backbone.body(images)
        torch.testing.assert_close(body["0"], published.layer1(stem))


def test_a_timm_backbone(tmp_path):
    pytest.importorskip("timm")
    settings = BackboneSettings("timm/resnet10t")
    method = SimCLR(backbone=settings)
    trained(method)
    path = checkpoint_of(method, tmp_path)
    for arch in (None, "timm/resnet10t", "resnet10t"):
        loaded = load_model(arch, path)
        assert_same_features(loaded.model, method.backbone, 32)
    with pytest.raises(ValueError, match="stem of several convolutions"):
        to_detectron2(path, tmp_path / "x.pkl")
    torch.save(tensors(method.backbone), tmp_path / "plain.pth")
    assert_same_features(load_model("resnet10t", tmp_path / "plain.pth").model, method.backbone, 32)


def hub_folder(folder, config, state):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")


def test_a_hub_folder_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    net = trained(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5))
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 32}}
    hub_folder(tmp_path, config, tensors(net))
    loaded = load_model(None, tmp_path)
    net.reset_classifier(0)
    assert_same_features(loaded.model, net, 32)
    assert (loaded.arch, loaded.image_size) == ("timm/vit_tiny_patch16_224", 32)
    plain = load_model("timm/vit_tiny_patch16_224", tmp_path / "model.safetensors")
    assert_same_features(plain.model, net, 32)


@pytest.mark.parametrize("kind", ["dinov2", "vit", "resnet"])
def test_a_hub_folder_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16}
    small |= {"patch_size": 4, "intermediate_size": 32}
    if kind == "dinov2":
        net = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    elif kind == "vit":  # its checkpoint has a classifier and no pooler
        net = transformers.ViTForImageClassification(transformers.ViTConfig(**small))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        net = transformers.ResNetModel(transformers.ResNetConfig(layer_type="basic", **sizes))
    trained(net).save_pretrained(tmp_path)
    loaded = load_model(None, tmp_path)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        if kind == "vit":
            wanted = net.vit(pixel_values=images).last_hidden_state[:, 0]
        else:
            wanted = net(pixel_values=images).pooler_output.flatten(1)
        torch.testing.assert_close(loaded.model(images), wanted)
    assert loaded.arch == f"transformers/{kind}"


def test_the_encoder_of_a_masked_autoencoder_sees_all_patches(tmp_path):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16}
    small |= {"patch_size": 4, "intermediate_size": 32}
    small |= {f"decoder_{n}": small[n] for n in ("hidden_size", "num_attention_heads")}
    small |= {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32}
    net = trained(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**small)))
    net.save_pretrained(tmp_path)
    model = load_model(None, tmp_path).model
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        first, second = model(images), model(images)
        changed = model(torch.cat([images[:, :, :12], images[:, :, 12:].flip(3)], dim=2))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert not torch.allclose(first, changed, atol=1e-3)


def test_a_repository_in_the_hubs_cache_needs_no_network(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    net = trained(create_backbone("timm/resnet10t"))
    hub_folder(snapshot, {"architecture": "resnet10t"}, tensors(net))
    assert_same_features(load_model(None, "hf-hub:someone/small").model, net, 32)
    with pytest.raises(OSError, match="hf-hub:someone/other cannot be fetched") as error:
        load_model(None, "hf-hub:someone/other")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="checkpoint hf-hub:a/b/c: "):
        load_model(None, "hf-hub:a/b/c")


def test_a_repository_of_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    folder = tmp_path / "facebookresearch_small_main"
    folder.mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), folder / "w.pth")
    (folder / "hubconf.py").write_text(
        "import pathlib, torch\n"
        "def small():\n"
        "    net = torch.nn.Linear(3, 2)\n"
        "    net.load_state_dict(torch.load(pathlib.Path(__file__).parent / 'w.pth'))\n"
        "    return net\n"
        "def broken():\n"
        "    raise KeyError('no weights\\nat all')\n"
        "def number():\n"
        "    return 3\n"
    )
    name = "torch.hub:facebookresearch/small:main"
    loaded = load_model(None, f"{name}/small")
    assert torch.equal(loaded.model.weight, torch.load(folder / "w.pth")["weight"])
    for entry, why in (
        ("broken", "torch.hub cannot load it"),
        ("none", "torch.hub cannot load it"),
        ("number", "gives a int, not a model"),
    ):
        with pytest.raises(ValueError, match=why):
            load_model(None, f"{name}/{entry}")
    with pytest.raises(ValueError, match="leave arch out"):
        load_model("resnet18", f"{name}/small")
    with pytest.raises(ValueError, match=r"must be torch\.hub:<owner>"):
        load_model(None, "torch.hub:small")
    # What is in the cache is trusted; else torch.hub asks on standard input.
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", eof)
    with pytest.raises(ValueError, match="someone/small:main is not trusted to run its code"):
        load_model(None, "torch.hub:someone/small:main/small")


def eof(*_, **__):
    raise EOFError


class Bomb:
    def __reduce__(self):
        return (print, ("ran",))


def test_no_code_in_a_distributed_checkpoint_is_run(tmp_path, networks, capsys):
    folder = FORMS["distributed"](networks["cifar"], tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"asks for builtins\.print, which no index"):
        load_model("resnet18", folder)
    assert capsys.readouterr().out == ""


def test_a_sharded_run_with_lightnings_metadata(tmp_path):
    """Two shards of every tensor, as two processes of FSDP write them, and `meta.pt` beside."""
    torch.manual_seed(0)
    method = SimCLR(backbone=CIFAR)
    trained(method)
    checkpoint = {"epoch": 3}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "meta.pt")
    entries, places = {}, {}
    for rank in (0, 1):
        file = io.BytesIO()
        for name, tensor in under("model.", method.state_dict()).items():
            rows = tensor.shape[0] // 2 if tensor.ndim else 0
            if rank == 1 and not tensor.ndim:
                continue
            part = tensor if not tensor.ndim else (tensor[:rows], tensor[rows:])[rank]
            offset = torch.Size([rank * rows, *[0] * (tensor.ndim - 1)] if tensor.ndim else [])
            chunk = dcp.ChunkStorageMetadata(offset, part.shape)
            properties = dcp.TensorProperties.create_from_tensor(tensor)
            entry = entries.setdefault(
                name, dcp.TensorStorageMetadata(properties, tensor.shape, [])
            )
            entry.chunks.append(chunk)
            start = file.tell()
            torch.save(part.clone(), file)
            places[dcp.MetadataIndex(name, offset)] = filesystem._StorageInfo(
                f"__{rank}_0.distcp", start, file.tell() - start
            )
        (tmp_path / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    index = dcp.Metadata(entries, {}, places, dcp.StorageMeta(tmp_path))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    loaded = load_model(None, tmp_path)
    assert_same_features(loaded.model, method.backbone)
    assert loaded.pretrained.method == "SimCLR"
    whole = (tmp_path / "__1_0.distcp").read_bytes()
    (tmp_path / "__1_0.distcp").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"cannot be read \(its shard __1_0.distcp ends early"):
        load_model(None, tmp_path)
    (tmp_path / "__1_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match=r"__1_0\.distcp"):
        load_model(None, tmp_path)


def damaged(content):
    yield b""
    yield content[: len(content) // 2]
    yield content[:-3]
    for place in (9, 40, len(content) // 2):
        yield content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize("form", ["plain", "legacy torch.save", "safetensors", "distributed"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_one_line(tmp_path, form):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3))
    path = FORMS[form](net, tmp_path)
    for file in path.iterdir() if path.is_dir() else [path]:
        content = file.read_bytes()
        for broken in damaged(content):
            file.write_bytes(broken)
            try:
                load_model("resnet18", path)
            except (ValueError, OSError) as error:
                assert "\n" not in str(error)  # noqa: PT017
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": {"w": "../../etc/shadow"}}, "must be a file beside the index"),
        ({"weight_map": {"w": "none.safetensors"}}, "its shard none.safetensors does not exist"),
        ({"weight_map": ["w"]}, "not an index of a sharded checkpoint"),
        ([], "not an index of a sharded checkpoint"),
    ],
)
def test_damaged_indices_are_refused(tmp_path, change, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(change))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with pytest.raises((ValueError, OSError), match=message):
            load_model("resnet18", path)


def test_what_does_not_say_what_it_is_or_does_not_fit(tmp_path, networks):
    net = networks["cifar"]
    state = net.state_dict()
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="does not say which architecture it is of; give arch"):
        load_model(None, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="give arch, a checkpoint"):
        load_model()
    with pytest.raises(ValueError, match=r"name the architecture that it was trained with"):
        load_model("resnet34", tmp_path / "c.pth")
    torch.save({"arch": "resnet18", "state_dict": state}, tmp_path / "named.pth")
    assert_same_features(load_model(None, tmp_path / "named.pth").model, net)
    torch.save({"a": state, "b": noise(state)}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"choose by prefix: 'a\.', 'b\.'"):
        load_model("resnet18", tmp_path / "two.pth")
    assert_same_features(load_model("resnet18", tmp_path / "two.pth", prefix="a").model, net)
    with pytest.raises(ValueError, match=r"no network that fits under 'c\.'; found 'a\.', 'b\.'"):
        load_model("resnet18", tmp_path / "two.pth", prefix="c")
    partly = {n: v for n, v in state.items() if not n.startswith("layer4")}
    torch.save(under("net.", partly), tmp_path / "partly.pth")
    with pytest.raises(
        ValueError, match=r"lacks 25 of the model's 120 tensors.*or allow a partial"
    ):
        load_model("resnet18", tmp_path / "partly.pth")
    loaded = load_model("resnet18", tmp_path / "partly.pth", allow_partial=True)
    assert len(loaded.match.missing) == 25
    assert any("stay random" in note for note in loaded.notes)
    broken = copy.deepcopy(state)
    broken["bn1.weight"][0] = torch.nan
    torch.save(broken, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"bn1\.weight holds NaN or inf"):
        load_model("resnet18", tmp_path / "nan.pth")


def test_two_names_of_one_network_are_no_choice(tmp_path, networks):
    net = networks["cifar"]
    twice = under("backbone.", net.state_dict()) | under("model.encoder.", net.state_dict())
    torch.save(twice, tmp_path / "c.pth")
    assert_same_features(load_model("resnet18", tmp_path / "c.pth").model, net)
