"""A model measured on a local Ray cluster: the numbers of one process on the same batches."""

import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from lightly_collapse.cli import main
from lightly_collapse.io.image_batches import ImageFolderLoader
from lightly_collapse.report import CollapseReport, measure, ray_inference

ray = pytest.importorskip("ray", reason="Ray is not installed")

SETTINGS = {"lid_k": 5, "lid_size": 40, "blocks": 10}


@pytest.fixture(scope="module")
def cluster():
    with pytest.importorskip("tests.ray_cluster").ray_cluster():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 images, of which number 5 and all of the second batch of 8 cannot be read."""
    root = tmp_path_factory.mktemp("images")
    g = torch.Generator().manual_seed(0)
    for i in range(60):
        pixels = torch.randint(0, 256, (9, 9, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{i:02d}.png")
    for i in (5, *range(8, 16)):
        (root / f"{i:02d}.png").write_bytes(b"no image")
    return root


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))


def known(scalars):
    return {name: value for name, value in scalars.items() if value is not None}


def assert_equal(found, wanted):
    # Reports hold six digits: a number on the edge may be rounded either way.
    near = {"rel": 2e-6, "abs": 1e-12}
    assert found.notes == wanted.notes
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert known(one.scalars) == pytest.approx(known(other.scalars), **near)
        # With fewer rows than dimensions the last singular value is rounding alone.
        rounding = 1e-7 * max(other.spectrum)
        assert one.spectrum == pytest.approx(other.spectrum, rel=2e-6, abs=rounding)
        assert one.lid == pytest.approx(other.lid, **near)
        assert one.intervals.keys() == other.intervals.keys()
        for name, ends in one.intervals.items():
            assert ends == pytest.approx(other.intervals[name], **near), name


@pytest.mark.slow
def test_a_folder_is_measured_as_by_one_process(cluster, folder):
    one, other = (ImageFolderLoader(folder, size=8, batch_size=8) for _ in range(2))
    local = measure(encoder(), one, ["0"], tokens="all", **SETTINGS)
    found = measure(encoder(), other, ["0"], tokens="all", engine="ray", **SETTINGS)
    assert_equal(found, local)
    assert found.output.scalars["rows"] == 51 * 16  # positions of a map of 4 x 4
    assert other.unreadable == one.unreadable
    assert len(other.unreadable) == 9


@pytest.mark.slow
def test_tokens_and_drift_from_a_reference(cluster):
    class Tokens(VisionTransformer):
        def forward(self, x):
            x = self._process_input(x)
            return self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1))

    torch.manual_seed(0)
    model, reference = (Tokens(16, 4, 2, 2, 12, 16).eval() for _ in range(2))
    loader = DataLoader(TensorDataset(torch.rand(150, 3, 16, 16)), batch_size=7)
    layers = ["encoder.layers.encoder_layer_0"]
    keywords = {"reference": reference, **SETTINGS}
    local = measure(model, loader, layers, **keywords)
    found = measure(model, loader, layers, engine="ray", **keywords)
    assert local.layer("output.patch").scalars["gram_drift"] > 0
    for one, other in zip(found.layers, local.layers, strict=True):
        # After a LayerNorm one direction holds rounding alone, which two of the measures look at.
        rounding = {"condition_number": 0, "alpha_req": 0}
        assert one.scalars | rounding == pytest.approx(other.scalars | rounding, rel=2e-6)


@pytest.mark.slow
def test_a_killed_worker_changes_no_number(cluster, folder, tmp_path, monkeypatch):
    loader = ImageFolderLoader(folder, size=8, batch_size=8)
    local = measure(encoder(), loader, ["0"], **SETTINGS)
    mark = tmp_path / "killed"
    whole = ray_inference._Worker.call

    def dying(self, first, stop):
        result = whole(self, first, stop)
        if first >= 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(ray_inference._Worker, "call", dying)
    found = measure(encoder(), loader, ["0"], engine="ray", **SETTINGS)
    assert mark.exists()
    assert_equal(found, local)


@pytest.mark.slow
def test_what_cannot_be_cut_or_run_is_said(cluster, tmp_path):
    data = TensorDataset(torch.rand(20, 3, 8, 8))
    for loader, keywords, message in (
        (DataLoader(data, shuffle=True), {}, "batches of a data set in its order.*RandomSampler"),
        ([torch.rand(4, 3, 8, 8)], {}, "must be a DataLoader, to be cut into parts, got list"),
        (DataLoader(data), {"device": "cuda:1"}, "must be auto, cpu or cuda with engine ray"),
        (DataLoader(data), {"device": "cuda"}, "no node of the Ray cluster has a GPU"),
        (DataLoader(data), {"train_dataloader": DataLoader(data)}, "train_dataloader must not"),
        (DataLoader(data), {"engine": "spark"}, "engine must be one of local, ray, got 'spark'"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(encoder(), loader, [], **{"engine": "ray", **keywords})
    (tmp_path / "a.png").write_bytes(b"no image")
    loader = ImageFolderLoader(tmp_path, size=8)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        measure(encoder(), loader, [], engine="ray")
    assert len(loader.unreadable) == 1


@pytest.mark.slow
def test_command(cluster, folder, tmp_path, capsys):
    words = ["measure", "--arch", "resnet18", "--image-size", "32", "--batch-size", "16"]
    images = shutil.copytree(folder, tmp_path / "images")
    reports = []
    for engine in ("local", "ray"):
        output = tmp_path / engine
        data = ["--data", str(images), "--engine", engine, "--output", str(output)]
        assert main([*words, *data, "--layers", "layer1"]) == 0
        assert "9 images could not be read" in capsys.readouterr().out
        reports.append(CollapseReport.load(output / "measure.json"))
    assert_equal(*reports[::-1])
    assert reports[0].source == reports[1].source
