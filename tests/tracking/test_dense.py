"""Dense measures in tracker and measure: a sample of the images, and the drift from a reference."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from lightly_collapse.functional.tokens import (
    gram_drift,
    mean_token_cosine,
    norm_outliers,
    patch_rank,
)
from lightly_collapse.metrics.dense import TokenMetrics, means
from lightly_collapse.report import measure
from lightly_collapse.tracking import CollapseTracker
from tests.helpers import normal

LAYER = "backbone.encoder.ln"
FUNCTIONS = {
    "patch_rank": patch_rank,
    "mean_token_cosine": mean_token_cosine,
    "norm_outliers": norm_outliers,
}


def transformer(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    vit = VisionTransformer(16, 8, 2, 2, 12, 16, dropout=dropout)
    vit.heads = nn.Identity()
    return vit


class Model(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.backbone = transformer(dropout=dropout)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.backbone(x))


def tokens_of(model, layer, x):
    found = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, __, z: found.append(z.detach()[:, 1:])
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


def images(n=6, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_all_of_few_images_and_a_weighted_sample_of_many():
    metrics = TokenMetrics(size=4)
    seen, weights = 0, {}
    for n in (3, 1, 7, 21):
        index, weight = metrics.choose(n)
        weights |= {seen + int(i): float(w) for i, w in zip(index, weight, strict=True)}
        seen += n
    expected = dict.fromkeys(range(4), 1.0) | dict.fromkeys((4, 6), 2.0)
    expected |= dict.fromkeys((8, 12), 4.0) | dict.fromkeys((16, 24), 8.0)
    assert weights == expected
    assert sum(weights.values()) == seen == 32


def test_the_means_are_those_of_the_plain_functions_and_of_several_processes():
    x, y = normal(9, 5, 4), normal(9, 5, 4, seed=1)
    parts = []
    for chunk in (slice(0, 4), slice(4, 9)):
        metrics = TokenMetrics()
        index, weights = metrics.choose(len(x[chunk]))
        metrics.update(x[chunk][index], weights, y[chunk][index])
        parts.append(metrics.totals())
    found = means(parts)
    for name, function in FUNCTIONS.items():
        assert found[name] == pytest.approx(float(function(x).mean()), rel=1e-6)
    assert found["gram_drift"] == pytest.approx(float(gram_drift(x, y).mean()), rel=1e-6)


def test_images_that_are_not_finite_are_left_out():
    x = normal(3, 5, 4)
    x[1, 2, 0] = torch.nan
    metrics = TokenMetrics()
    metrics.update(x, torch.ones(3))
    expected = patch_rank(x[[0, 2]]).mean()
    assert metrics.compute()["patch_rank"] == pytest.approx(float(expected))
    assert "gram_drift" not in metrics.compute()
    metrics.reset()
    assert metrics.compute() == {}
    metrics.update(x[:, :1], torch.ones(3))  # one patch
    assert metrics.compute() == {}


@pytest.mark.parametrize("layer", [LAYER, "backbone.encoder"])
def test_the_tracker_reads_them(layer):
    model, earlier = Model(), transformer(seed=1)
    x = images()
    tokens = tokens_of(model, layer, x)
    other = tokens_of(earlier, layer.removeprefix("backbone."), x)
    with CollapseTracker(
        model, (layer,), every_n_steps=1, lid_k=2, reference={"backbone": earlier}
    ) as tracker:
        model(x)
        readings = tracker.step()
    for name, function in FUNCTIONS.items():
        expected = float(function(tokens).mean())
        assert readings[f"collapse/{layer}.patch/{name}"] == pytest.approx(expected, rel=1e-4)
        assert f"collapse/{layer}.cls/{name}" not in readings
    drift = readings[f"collapse/{layer}.patch/gram_drift"]
    assert drift == pytest.approx(float(gram_drift(tokens, other).mean()), rel=1e-4)
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *earlier.modules())
    )


class Draws(VisionTransformer):
    """A reference that draws random numbers, as a masked autoencoder does."""

    def forward(self, x):
        torch.rand(7)
        return super().forward(x)


def test_training_with_a_reference_is_bit_identical():
    states = []
    for tracked in (False, True):
        model = Model(dropout=0.2)
        tracker = None
        if tracked:
            reference = {"backbone": Draws(16, 8, 2, 2, 12, 16)}
            tracker = CollapseTracker(model, (LAYER,), 1, lid_k=2, reference=reference)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.manual_seed(3)
        for step in range(3):
            optimizer.zero_grad()
            model(images(seed=step)).square().mean().backward()
            optimizer.step()
            if tracker is not None:
                assert f"collapse/{LAYER}.patch/gram_drift" in tracker.step()
        states.append([*model.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = transformer().encoder

    def forward(self, x):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Fails(), "the reference cannot be measured: out of memory"),
        (VisionTransformer(16, 4, 2, 2, 12, 16), "gram_drift of .* was not measured"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be computed")
def test_a_reference_that_cannot_be_compared_ends_nothing(reference, message):
    model = Model()

    def two_steps():
        with CollapseTracker(
            model, (LAYER,), every_n_steps=1, lid_k=2, reference={"backbone": reference}
        ) as tracker:
            for _ in range(2):
                model(images())
                readings = tracker.step()
        return readings

    with pytest.warns(UserWarning, match=message):
        readings = two_steps()
    assert readings[f"collapse/{LAYER}.patch/patch_rank"] > 1
    assert f"collapse/{LAYER}.patch/gram_drift" not in readings


def test_references_that_fit_nothing():
    model = Model()
    for reference, message in (
        ({"head": nn.Linear(2, 2)}, "module that holds a layer among backbone.encoder.ln"),
        ({"backbone": model.backbone}, "must be a model of its own"),
        ({"backbone": nn.Linear(2, 2)}, "layers must name modules of Linear, got 'encoder.ln'"),
        ({"backbon": transformer()}, "got 'backbon'"),
    ):
        with pytest.raises(ValueError, match=message):
            CollapseTracker(model, (LAYER,), reference=reference)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        TokenMetrics(0)


class Sequence(nn.Module):
    """Gives all tokens."""

    def __init__(self, seed):
        super().__init__()
        self.vit = transformer(seed)

    def forward(self, x):
        x = self.vit._process_input(x)
        return self.vit.encoder(torch.cat([self.vit.class_token.expand(len(x), -1, -1), x], dim=1))


def test_measure_with_a_reference(tmp_path):
    model, earlier = Sequence(0), Sequence(1)
    x = images(20)
    layer = "vit.encoder.layers.encoder_layer_0"
    report = measure(model, DataLoader(x, batch_size=8), [layer], reference=earlier, lid_k=3)
    for name in (layer, "vit.encoder.ln"):
        tokens, other = tokens_of(model, name, x), tokens_of(earlier, name, x)
        record = report.layer("output.patch" if name == "vit.encoder.ln" else f"{layer}.patch")
        for measured, function in FUNCTIONS.items():
            expected = float(function(tokens).mean())
            assert record.scalars[measured] == pytest.approx(expected, rel=1e-4)
        drift = float(gram_drift(tokens, other).mean())
        assert record.scalars["gram_drift"] == pytest.approx(drift, rel=1e-4)
    assert "Gram drift" in report.table()
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Patches of an image" in page
    assert page.count("output.patch") > 1
    again = measure(model, DataLoader(x, batch_size=8), [layer], lid_k=3)
    assert "gram_drift" not in again.layer(f"{layer}.patch").scalars
    again.to_html(tmp_path / "page.html")


def test_references_that_measure_refuses():
    data = DataLoader(images(8), batch_size=8)
    with pytest.raises(ValueError, match="the reference cannot be measured on these images"):
        measure(Sequence(0), data, reference=Fails(), lid_k=3)
    small = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(ValueError, match="reference must give patch tokens"):
        measure(small, data, [], reference=copy.deepcopy(small), lid_k=3)
