"""layer_similarity against `functional.cka` of features taken by hand, and `compare --cka`."""

import importlib
import json

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from lightly_collapse import functional
from lightly_collapse.cli import main
from lightly_collapse.report import CollapseReport, LayerSimilarity, layer_similarity, measure
from tests.page_reader import assert_self_contained


def encoder(seed, width=10):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, width, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(width, 5),
    )


def images(n=150, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def features(model, x):
    """The rows of the layers 0, 2 and 6, step by step."""
    with torch.no_grad():
        first = model[0](x)
        second = model[2](model[1](first))
        return [first.mean((2, 3)), second.mean((2, 3)), model[6](second.mean((2, 3)))]


@pytest.mark.parametrize("batch", [1, 64, 150])
def test_equals_cka_of_features_taken_by_hand(batch, monkeypatch):
    module = importlib.import_module("lightly_collapse.report.layer_similarity")
    monkeypatch.setattr(module, "_BLOCK", 60)
    a, b = encoder(0), encoder(1, width=7)
    found = layer_similarity(a, b, images().split(batch), layers_a=["0", "2", "6"])
    assert found.layers_b == ["0", "2", "6", "output"]
    assert found.images == 150
    for x, row in zip(features(a, images()), found.cka, strict=True):
        expected = [functional.cka(x.double(), y.double()) for y in features(b, images())]
        assert row[:3] == pytest.approx([float(e) for e in expected], abs=1e-6)
        assert row[3] == row[2]
    assert a.training
    assert b.training


def test_a_model_with_itself_is_one_on_the_diagonal():
    model = encoder(0)
    found = layer_similarity(model, model, [images()])
    matrix = torch.tensor(found.cka)
    assert torch.allclose(matrix.diagonal(), torch.ones(4))
    assert torch.allclose(matrix, matrix.T)
    assert matrix[0, 1] < 0.999


def test_rotations_and_scales_of_the_features_change_nothing():
    model, other = encoder(0), encoder(1)
    turn = nn.Linear(5, 5)
    with torch.no_grad():
        turn.weight.copy_(3 * torch.linalg.qr(torch.randn(5, 5)).Q)
    plain = layer_similarity(other, model, [images()], layers_b=["output"])
    turned = layer_similarity(
        other, nn.Sequential(model, turn), [images()], layers_b=["0.6", "output"]
    )
    for (value,), pair in zip(plain.cka, turned.cka, strict=True):
        assert pair == pytest.approx([value, value], abs=2e-6)


def test_each_model_can_have_its_own_preparation_of_the_images():
    model = encoder(0)
    scaled = nn.Sequential(model)
    found = layer_similarity(
        model, scaled, [images()], [(images(), torch.zeros(150))], layers_a=["output"]
    )
    assert found.value("output", "output") == 1.0
    other = layer_similarity(model, scaled, [images()], [images(seed=1)], layers_a=["output"])
    assert abs(other.value("output", "output")) < 0.2


def test_tokens_are_averaged_over_the_patches():
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval()
    x = torch.randn(40, 3, 32, 32)
    found = layer_similarity(vit, vit, [x], layers_a=["blocks.1"], layers_b=["output"])
    with torch.no_grad():
        tokens = vit.blocks(vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
        expected = functional.cka(tokens[:, 1:].mean(1).double(), vit(x).double())
    assert found.cka[0][0] == pytest.approx(float(expected), abs=1e-5)


def test_features_are_those_before_the_next_layer_changes_them_in_place():
    linear, x = nn.Linear(4, 6), torch.randn(30, 4)
    model = nn.Sequential(linear, nn.ReLU(inplace=True))
    found = layer_similarity(model, linear, [x], layers_a=["0", "1"], layers_b=["output"])
    assert found.cka[0][0] == pytest.approx(1)
    assert found.cka[1][0] < 0.99


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(self.shared(x))


def test_stages_that_are_not_called_are_left_out_and_constant_ones_have_no_number():
    class Constant(Twice):
        def forward(self, x):
            return self.shared(0 * x)

    found = layer_similarity(Constant(), nn.Flatten(), [torch.randn(9, 4)])
    assert found.layers_a == ["shared", "output"]
    assert found.cka == [[None], [None]]
    assert found.summary().endswith("not defined for output and output.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers_a": ["9"]}, "must name modules of Sequential, got '9'"),
        ({"layers_b": []}, r"layers_b must be different names of layers, got \[\]"),
        ({"layers_a": ["0", "0"]}, "layers_a must be different names"),
        ({"dataloader": []}, "at least one batch, got none"),
        ({"dataloader": [images(3)]}, "at least 4 images for CKA, got 3"),
        ({"dataloader": [images(6) / 0]}, "layers_a must give finite features"),
        ({"dataloader_b": [images(6)]}, "same size, got 6 beside 8"),
        ({"dataloader_b": [images(8)] * 2}, "as many batches as dataloader"),
    ],
)
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_similarity(encoder(0), encoder(1), **{"dataloader": [images(8)], **arguments})


def test_layers_of_several_calls_and_too_many_numbers_are_refused(monkeypatch):
    rows = [torch.randn(8, 4)]
    with pytest.raises(ValueError, match="once and give one row an image, got 2 calls of 'shared'"):
        layer_similarity(Twice(), Twice(), rows, layers_a=["shared"])
    with pytest.raises(ValueError, match="got 0 calls of 'unused' for 8 images"):
        layer_similarity(Twice(), Twice(), rows, layers_a=["unused"])
    monkeypatch.setattr("os.sysconf", lambda _: 8)
    with pytest.raises(ValueError, match="layers_a and layers_b, 1 x 1 pairs, need"):
        layer_similarity(nn.Flatten(), nn.Flatten(), rows)


def test_the_summary_names_layers_and_a_missing_one_is_named():
    found = LayerSimilarity(("x", "y"), ["p", "q"], ["p", "q"], [[0.5, 0.1], [0.2, 0.75]], 9)
    assert found.summary() == (
        "Linear CKA of x and y on 9 images: of the layers of one name most alike q (0.750), least "
        "alike p (0.500)."
    )
    assert (
        "0.500 for the layer p" in LayerSimilarity(("x", "y"), ["p"], ["p"], [[0.5]], 9).summary()
    )
    assert "0.500 for p and q" in LayerSimilarity(("x", "y"), ["p"], ["q"], [[0.5]], 9).summary()
    with pytest.raises(ValueError, match="layer_b must be one of p, q, got 'r'"):
        found.value("p", "r")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two checkpoints measured on one folder at two sizes, one of them on the digits too."""
    root = tmp_path_factory.mktemp("measured")
    (root / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (40, 44, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / "images" / f"{i}.png")
    (root / "images" / "broken.jpg").write_bytes(b"\xff\xd8 this ends early")
    common = ["measure", "--arch", "resnet18", "--lid-k", "3"]
    for name, size, data in (
        ("one", "32", root / "images"),
        ("two", "40", root / "images"),
        ("digits", "32", "digits"),
    ):
        torch.manual_seed(len(name) + int(size))
        torch.save(resnet18().state_dict(), root / f"{name}.pt")
        words = ["--checkpoint", str(root / f"{name}.pt"), "--data", str(data), "--limit", "10"]
        words += ["--image-size", size, "--layers", "layer1", "layer3"]
        assert main([*common, *words, "--output", str(root / name)]) == 0
    measure(torch.randn(50, 4), lid_k=3, name="rows").save(root / "rows.json")
    return root


def test_compare_maps_the_layers_of_two_checkpoints(measured, tmp_path, capsys):
    files = [str(measured / name / "measure.json") for name in ("one", "two")]
    assert main(["compare", *files, "--cka", "--output", str(tmp_path)]) == 0
    rows = CollapseReport.load(files[0]).output.value("rows")
    assert f"Linear CKA of one and two on {rows:.0f} images" in capsys.readouterr().out
    found = json.loads((tmp_path / "similarity.json").read_text())
    assert found["layers_a"] == found["layers_b"] == ["layer1", "layer3", "output"]
    page = (tmp_path / "compare.html").read_text()
    assert_self_contained(page)
    assert 'id="similarity"' in page
    assert f'"value": {found["cka"][0][1]}' in page
    assert main(["compare", files[0], files[0], "--cka", "--output", str(tmp_path)]) == 0
    same = torch.tensor(json.loads((tmp_path / "similarity.json").read_text())["cka"])
    assert same.diagonal().tolist() == pytest.approx([1, 1, 1])


def test_without_the_option_nothing_is_loaded(measured, tmp_path):
    files = [str(measured / name / "measure.json") for name in ("one", "digits")]
    assert main(["compare", *files, "--output", str(tmp_path)]) == 0
    assert 'id="similarity"' not in (tmp_path / "compare.html").read_text()
    assert not (tmp_path / "similarity.json").exists()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["rows.json"], "rows is of embeddings or does not say what was measured"),
        (["digits/measure.json"], "reports must be of the same images for cka, got"),
        (["two/measure.json"] * 2, "reports must be two for cka, got 3"),
        (["gone.json"], "gone.pt of two, which does not exist here"),
        (["hub.json"], "checkpoints that are files for cka, got hf-hub:a/b"),
        (["moved.json"], "a folder that is still there for cka, got /nowhere"),
        (["limit.json"], "(limit 10, seed 0) and"),
    ],
)
def test_what_cannot_be_passed_through_again_is_one_line(
    measured, tmp_path, capsys, others, message
):
    record = json.loads((measured / "two" / "measure.json").read_text())
    for name, part in (
        ("gone", {"checkpoint": str(tmp_path / "gone.pt")}),
        ("hub", {"checkpoint": "hf-hub:a/b"}),
        ("moved", {"data": "/nowhere"}),
    ):
        assert part.keys() <= record["source"].keys()
        changed = record | {"source": record["source"] | part}
        (measured / f"{name}.json").write_text(json.dumps(changed))
    limited = record | {"settings": record["settings"] | {"limit": 7}}
    (measured / "limit.json").write_text(json.dumps(limited))
    files = [str(measured / name) for name in ("one/measure.json", *others)]
    output = tmp_path / "out"
    assert main(["compare", *files, "--cka", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(output.glob("*"))
