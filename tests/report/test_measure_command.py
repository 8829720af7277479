"""`lightly-collapse measure` and `compare`: checkpoints, folders, failures."""

import copy
import json
import shutil

import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from lightly_collapse.cli import main
from lightly_collapse.functional.tokens import gram_drift
from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.io.image_batches import ImageFolderLoader, digits_loader
from lightly_collapse.io.images import Normalization
from lightly_collapse.io.spectra import SpectraFile
from lightly_collapse.report import CollapseReport


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(1)
    return resnet18(num_classes=7)


def prefixed(backbone, prefix):
    return {prefix + name: value for name, value in backbone.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(30):
        place = root / f"class{i % 3}"
        place.mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (20 + i, 24, 3), generator=generator, dtype=torch.uint8)
        mode = ["RGB", "L", "RGBA"][i % 3]
        Image.fromarray(pixels.numpy()).convert(mode).save(place / f"{i}.png")
    return root


def broken_copy(folder, target):
    shutil.copytree(folder, target)
    (target / "class0" / "broken.jpg").write_bytes(b"\xff\xd8 this ends early")
    (target / "class1" / "cut.png").write_bytes((folder / "class1" / "1.png").read_bytes()[:60])
    (target / "notes.txt").write_text("no image")
    return target


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_the_rest_is_read(folder, tmp_path, workers):
    loader = ImageFolderLoader(
        broken_copy(folder, tmp_path / "images"), size=16, batch_size=8, workers=workers
    )
    batches = list(loader)
    assert sum(len(batch) for batch in batches) == 30
    assert batches[0].shape[1:] == (3, 16, 16)
    assert len(loader.unreadable) == 2
    assert any("broken.jpg: " in reason for reason in loader.unreadable)


def test_a_limit_chooses_by_seed(folder):
    first, again, other = (
        torch.cat(list(ImageFolderLoader(folder, size=8, limit=7, seed=s))) for s in (0, 0, 1)
    )
    assert len(first) == 7
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_measure_and_compare_from_the_command_line(folder, tmp_path, backbone, capsys):
    torch.save({"state_dict": prefixed(backbone, "backbone.")}, tmp_path / "trained.ckpt")
    data = broken_copy(folder, tmp_path / "images")
    common = ["--arch", "resnet18", "--image-size", "32", "--lid-k", "5"]
    one, two = tmp_path / "one", tmp_path / "two"
    checkpoint = ["--checkpoint", str(tmp_path / "trained.ckpt")]
    assert main(["measure", *common, *checkpoint, "--data", str(data), "--output", str(one)]) == 0
    out = capsys.readouterr().out
    assert "found under the prefix 'backbone.'" in out
    assert "2 tensors of the checkpoint were not used" in out
    assert "2 images could not be read and were left out" in out
    assert "Only 30 rows were measured for 512 dimensions" in out
    record = json.loads((one / "measure.json").read_text())
    assert record["name"] == "trained"
    assert record["layers"][0]["scalars"]["rows"] == 30
    digits = ["--data", "digits", "--limit", "40", "--layers", "layer3"]
    assert main(["measure", *common, *digits, "--output", str(two)]) == 0
    files = [str(folder / "measure.json") for folder in (one, two)]
    assert main(["compare", *files, "--output", str(tmp_path / "both")]) == 0
    assert "trained" in (tmp_path / "both" / "compare.html").read_text()
    assert {p.name for p in one.iterdir()} == {"measure.json", "measure.html", "spectrum.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet18", "--data", "EMPTY"], "data must hold images"),
        (
            ["--arch", "resnet18", "--data", "NOWHERE"],
            "`digits` or a folder of images",
        ),
        (["--arch", "resnet18", "--data", "BROKEN"], "data must hold an image that can be read"),
        (["--arch", "nonet", "--data", "digits"], "arch must be a model of torchvision"),
        (["--arch", "resnet18", "--data", "digits", "--checkpoint", "NOWHERE"], "does not exist"),
        (["--arch", "resnet18", "--data", "digits", "--layers", "layer9"], "got 'layer9'"),
        (["--arch", "resnet18", "--data", "digits", "--batch-size", "0"], "batch_size must be"),
        (
            ["--arch", "resnet18", "--data", "digits", "--device", "hpu"],
            "device 'hpu' cannot be used on this machine",
        ),
    ],
)
def test_failures_are_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "a.jpg").write_bytes(b"no image")
    places = {name: str(tmp_path / name) for name in ("EMPTY", "NOWHERE", "BROKEN")}
    arguments = [places.get(a, a) for a in arguments]
    assert main(["measure", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lightly-collapse measure: error: ")
    assert message in error


@pytest.mark.parametrize("place", [".", "checkpoints", "given"])
def test_spectra_over_training_are_on_the_page(tmp_path, backbone, place):
    """What a monitor wrote beside the checkpoint, above it, or where the option says."""
    checkpoint = tmp_path / place / "last.ckpt"
    checkpoint.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": prefixed(backbone, "backbone.")}, checkpoint)
    path = tmp_path / ("elsewhere.json" if place == "given" else "collapse-spectra.json")
    file = SpectraFile(path, "epoch")
    for epoch in range(2):
        file.add(epoch, {"backbone": [2.0, 1.0]})
    words = [
        "--arch",
        "resnet18",
        "--checkpoint",
        str(checkpoint),
        "--data",
        "digits",
        "--limit",
        "30",
    ]
    given = ["--spectra", str(path)] if place == "given" else []
    assert main(["measure", *words, *given, "--output", str(tmp_path / "out")]) == 0
    assert "Spectrum over training" in (tmp_path / "out" / "measure.html").read_text()


def test_broken_spectra_are_a_note_unless_asked_for(tmp_path, backbone, capsys):
    checkpoint, path = tmp_path / "last.ckpt", tmp_path / "collapse-spectra.json"
    torch.save({"state_dict": prefixed(backbone, "backbone.")}, checkpoint)
    path.write_text("{")
    words = [
        "measure",
        "--arch",
        "resnet18",
        "--checkpoint",
        str(checkpoint),
        "--data",
        "digits",
        "--limit",
        "30",
    ]
    output = ["--output", str(tmp_path / "out")]
    assert main([*words, *output]) == 0
    assert "The spectra over training are not shown" in capsys.readouterr().out
    assert main([*words, *output, "--spectra", str(path)]) == 2
    assert "must hold spectra that a CollapseMonitor" in capsys.readouterr().err


def test_compare_of_something_else_is_one_line(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert main(["compare", str(path), str(path), "--output", str(tmp_path / "c")]) == 2
    assert "must be a report written by" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_digits():
    batches = list(digits_loader(size=16, batch_size=64, limit=100))
    assert [len(b[0]) for b in batches] == [64, 36]
    assert batches[0][0].shape[1:] == (3, 16, 16)


def test_the_drift_from_a_reference_checkpoint(tmp_path, capsys):
    torch.manual_seed(0)
    net = create_backbone(BackboneSettings("vit_tiny", image_size=16, patch_size=4))
    torch.save(net.state_dict(), tmp_path / "early.pth")
    early = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(net.state_dict(), tmp_path / "late.pth")
    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    words = ["measure", "--arch", "vit_tiny", "--checkpoint", str(tmp_path / "late.pth")]
    words += ["--data", "digits", "--limit", "12", "--output", str(tmp_path / "out")]
    layer = "encoder.layers.encoder_layer_1"
    words += ["--layers", layer]
    drift = {}
    for name in ("early", "late"):
        assert main([*words, "--reference", str(tmp_path / f"{name}.pth")]) == 0
        report = CollapseReport.load(tmp_path / "out" / "measure.json")
        drift[name] = report.layer(f"{layer}.patch").value("gram_drift")
        assert report.source["reference"] == str(tmp_path / f"{name}.pth")
    assert report.settings["image_size"] == 16
    normalization = Normalization(*(tuple(report.settings[n]) for n in ("mean", "std")))
    (images,) = next(iter(digits_loader(16, 12, 12, normalization)))
    tokens = []
    for model in (net, early):
        kept = model.get_submodule(layer).register_forward_hook(
            lambda _, __, z: tokens.append(z[:, 1:].detach())
        )
        model.eval()(images)
        kept.remove()
    expected = float(gram_drift(*tokens).mean())
    assert expected > 1e-4
    assert drift["early"] == pytest.approx(expected, rel=1e-4)
    assert drift["late"] == pytest.approx(0, abs=1e-10)
    capsys.readouterr()
    assert main([*words, "--reference", str(tmp_path / "resnet.pth")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "resnet.pth does not fit the model: it has " in line
