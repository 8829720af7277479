"""measure, CollapseReport and compare against features computed by hand."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer, vit_b_16

from lightly_collapse import functional
from lightly_collapse.functional import danco
from lightly_collapse.report import CollapseReport, compare, measure
from lightly_collapse.report.measure import stages
from lightly_collapse.report.records import format_value
from tests.page_reader import assert_self_contained, count_charts


class Encoder(nn.Module):
    """A mean of the image, a 6-dimensional map, of which two dimensions are the sum of others."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 6, bias=False)
        with torch.no_grad():
            self.head.weight[4] = self.head.weight[0] + self.head.weight[1]
            self.head.weight[5] = self.head.weight[2] - self.head.weight[3]

    def forward(self, x):
        return self.head(self.drop(self.stem(x)).mean(dim=(2, 3)))


class Unused(Encoder):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)


def images(n=120):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture(scope="module")
def report(encoder):
    return measure(encoder, DataLoader(images(), batch_size=50), lid_k=10, name="toy")


def test_the_output_is_measured_in_evaluation_mode(encoder, report):
    assert encoder.training
    with torch.no_grad():
        z = encoder.eval()(images())
        encoder.train()
    s = functional.singular_values(z, center=True)
    out = report.output
    assert (out.name, out.dimensions) == ("output", 6)
    assert out.scalars["rankme"] == pytest.approx(float(functional.rankme(z)), rel=1e-4)
    assert out.scalars["collapsed_dimensions"] == 2
    torch.testing.assert_close(torch.tensor(out.spectrum[:4]), s[:4], rtol=1e-4, atol=0)
    lid = functional.lid_mom(z, k=10)
    assert out.scalars["mlid"] == pytest.approx(float(functional.geometric_mean(lid)), rel=1e-3)
    assert len(out.lid) == 120
    assert out.scalars["condition_number"] is None
    assert "cannot be told from zero" in out.problems["condition_number"]


def test_stages_and_weights_are_measured_too(encoder, report):
    assert [layer.name for layer in report.layers] == ["output", "stem", "head"]
    assert not encoder.stem._forward_hooks
    with torch.no_grad():
        z = encoder.stem(images()).mean(dim=(2, 3))
    s = functional.singular_values(z, center=True)
    torch.testing.assert_close(
        torch.tensor(report.layers[1].normalized_eigenvalues), (s / s[0]) ** 2, rtol=1e-3, atol=0
    )
    assert [(w.name, w.shape) for w in report.weights] == [
        ("stem.weight", (4, 27)),
        ("head.weight", (6, 4)),
    ]


def test_batches_of_labelled_images_and_of_views(encoder, report):
    labelled = DataLoader(TensorDataset(images(), torch.zeros(120)), batch_size=50)
    views = [
        ([batch, batch + 1], torch.zeros(len(batch)), ["name"]) for batch in images().split(60)
    ]
    for data in (labelled, views):
        other = measure(encoder, data, [], name="toy")
        assert other.output.scalars["rankme"] == report.output.scalars["rankme"]
        assert len(other.layers) == 1


def assert_same(ours, theirs):
    # After a LayerNorm one direction holds rounding alone, which two of the measures look at.
    rounding = {"condition_number": 0, "alpha_req": 0}
    ours, theirs = (r.output.scalars | rounding for r in (ours, theirs))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_class_token_and_patches_are_two_layers():
    class Sequence(VisionTransformer):
        def forward(self, x):
            x = self._process_input(x)
            return self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1))

    model = Sequence(16, 8, 2, 2, 12, 16).eval()
    x = torch.rand(30, 3, 16, 16)
    block = "encoder.layers.encoder_layer_0"
    report = measure(model, DataLoader(x, batch_size=8), [block], lid_k=5)
    names = ["output", "output.patch", f"{block}.cls", f"{block}.patch"]
    assert [layer.name for layer in report.layers] == names
    assert [layer.scalars["rows"] for layer in report.layers] == [30, 120, 30, 120]
    with torch.no_grad():
        z = model(x)
    assert_same(report, measure(z[:, 0], lid_k=5))
    mean = measure(model, DataLoader(x, batch_size=8), [], lid_k=5, tokens="mean")
    assert_same(mean, measure(z[:, 1:].mean(dim=1), lid_k=5))


def test_named_layers_and_all_positions(encoder):
    report = measure(
        encoder, DataLoader(images(20), batch_size=20), ["stem"], tokens="all", lid_k=10
    )
    assert report.layers[1].scalars["rows"] == 20 * 36
    with pytest.raises(ValueError, match="got 'setm'; there are stem"):
        measure(encoder, DataLoader(images(20)), ["setm"])
    with pytest.raises(ValueError, match="must be called in forward, got 'unused'"):
        measure(Unused(), DataLoader(images(20)), ["unused"])


def test_a_failing_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(99, 2))
    with pytest.raises(RuntimeError):
        measure(model, DataLoader(images(4)))
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_bad_data(encoder):
    with pytest.raises(ValueError, match="at least one batch, got none"):
        measure(encoder, [])
    with pytest.raises(ValueError, match=r"pixel_values or image or images, got dict"):
        measure(encoder, [{"x": images(2)}])


def test_what_cannot_be_measured_is_said(encoder):
    dead = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for p in dead.parameters():
        nn.init.zeros_(p)
    report = measure(dead, DataLoader(images(30), batch_size=30))
    assert report.output.scalars["rankme"] is None
    assert "could not be measured" in report.verdict()[0]
    broken = images(30)
    broken[3] = math.nan
    report = measure(encoder, [broken], lid_k=5)
    assert report.output.scalars["dropped"] == 1
    assert any("1 rows held NaN" in s for s in report.verdict())


def test_verdict_counts_in_plain_words(report, encoder):
    verdict = " ".join(report.verdict())
    assert "2 of 6 dimensions carry less than 0.01 of the largest singular value." in verdict
    few = measure(encoder, DataLoader(images(5), batch_size=5), lid_k=3)
    assert "Only 5 rows were measured for 6 dimensions, so at most 4" in few.verdict()[0]


def test_save_and_load(tmp_path, report):
    path = tmp_path / "r.json"
    report.save(path)
    assert CollapseReport.load(path) == report
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"format": "lightly-collapse report 1"}']
)
def test_what_is_no_report(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.json must be a report written by"):
        CollapseReport.load(path)


def test_table_and_plot(report):
    lines = report.table().splitlines()
    assert lines[0].split() == ["layer", "output", "stem", "head"]
    assert any(line.split()[:3] == ["collapsed", "dimensions", "2"] for line in lines)
    axes = report.plot().axes[0]
    assert axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.lines[:3]] == ["output (6)", "stem (4)", "head (6)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1797.0, "1797"),
        (0.36171, "0.362"),
        (123.4, "123"),
        (2e-5, "2.00e-05"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert format_value(value) == text


def test_page(tmp_path, report):
    path = tmp_path / "r.html"
    report.to_html(path)
    page = path.read_text()
    assert_self_contained(page)
    assert count_charts(page) == 5  # spectra and heat maps of features and of weights, LID
    assert "2 of 6 dimensions carry less than 0.01" in page
    assert "higher" in page


def test_names_are_escaped(tmp_path, encoder):
    report = measure(encoder, [images(30)], name="<script>alert(1)</script>", lid_k=5)
    report.to_html(tmp_path / "r.html")
    assert "<script>alert" not in (tmp_path / "r.html").read_text()


def test_compare_overlays_reports(tmp_path, report, encoder):
    report.save(tmp_path / "a.json")
    other = measure(encoder, [images(100) * torch.linspace(0, 1, 8)], name="toy", lid_k=10)
    comparison = compare([tmp_path / "a.json", other])
    assert comparison.table().splitlines()[0].split() == ["layer", "toy", "toy", "(2)"]
    labels = [line.get_label() for line in comparison.plot().axes[0].lines[:2]]
    assert labels == ["toy (6)", "toy (2) (6)"]
    comparison.to_html(tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert_self_contained(page)
    assert 'class="best"' in page


def test_compare_needs_two_of_one_tolerance(report, encoder):
    with pytest.raises(ValueError, match="two or more to compare, got 1"):
        compare([report])
    with pytest.raises(ValueError, match=r"one tolerance to be compared, got 0\.001, 0\.01"):
        compare([report, measure(encoder, [images(30)], rtol=1e-3, lid_k=5)])


def test_a_table_of_positions_is_no_stage():
    """As SigLIP and CLIP of transformers have it: its output is the same for every image."""
    embeddings = nn.ModuleDict({"patches": nn.Conv2d(3, 8, 4), "positions": nn.Embedding(9, 8)})
    model = nn.ModuleDict({"embeddings": embeddings, "head": nn.Linear(8, 4)})
    assert stages(model) == ["embeddings.patches", "head"]


def test_stages_of_a_vision_transformer_are_its_blocks():
    names = stages(vit_b_16())
    assert 4 <= len(names) <= 24
    assert sum("encoder_layer_" in name for name in names) == 12


def test_danco_and_unit_rows_as_the_papers_measure():
    torch.manual_seed(0)
    # Five dimensions in eight, with norms that differ by the row.
    x = torch.randn(300, 5) @ torch.randn(5, 8) * torch.rand(300, 1).exp()
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 8))
    with torch.no_grad():
        encoder[1].weight.copy_(torch.eye(8))
        encoder[1].bias.zero_()
    images = [x[:150, :, None, None], x[150:, :, None, None]]
    report = measure(encoder, images, normalize=True)
    # DirectCLR, spectrum.py: rows of norm 1, their covariance, its singular values.
    covariance = torch.nn.functional.normalize(x, dim=1).T.cov()
    expected = torch.linalg.svdvals(covariance)
    found = torch.tensor(report.output.spectrum).square() / (len(x) - 1)
    torch.testing.assert_close(found[:5], expected[:5], rtol=1e-3, atol=0)
    assert report.settings["normalize"]
    assert "danco" not in report.output.scalars
    pytest.importorskip("skdim")
    report = measure(encoder, images, layers=["1"], danco=True)
    assert report.output.scalars["danco"] == pytest.approx(danco(x), rel=1e-3)
    assert "danco" not in report.layer("1").scalars
    with pytest.raises(ValueError, match="danco must not be given with representations"):
        measure(x, danco=True)
