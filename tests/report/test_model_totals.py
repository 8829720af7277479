"""A model measured in parts: whatever the sharding and the batch size, the numbers of one pass."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse.io.image_batches import ImageFolderLoader, part_of
from lightly_collapse.report import measure
from lightly_collapse.report.embedding_totals import SketchSettings
from lightly_collapse.report.feature_pass import EmptyDataError
from lightly_collapse.report.model_pass import ModelPass
from lightly_collapse.report.model_totals import ModelTotals

IMAGES = 47
KEYWORDS = {"rtol": 1e-2, "lid_k": 4, "lid_size": 30, "seed": 0, "blocks": 10}
CPU = torch.device("cpu")


class Encoder(nn.Module):
    """Its stem is called twice in a forward pass; the output is a map of positions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.end = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.end(self.stem(self.stem(x).relu()))


@pytest.fixture(scope="module")
def job():
    torch.manual_seed(0)
    model = Encoder().double()
    return ModelPass(model, SketchSettings(**KEYWORDS), ["stem", "end"], tokens="all")


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(IMAGES, 3, 6, 6, generator=g, dtype=torch.float64))


@pytest.fixture(scope="module")
def whole(job, images):
    totals, _ = job.over(DataLoader(images, batch_size=8), CPU)
    return [totals.record(name) for name in ("output", "stem")]


def assert_same(totals: ModelTotals, records) -> None:
    for wanted in records:
        found = totals.record(wanted.name)
        assert found.scalars == pytest.approx(wanted.scalars, rel=2e-6)
        assert found.intervals.keys() == wanted.intervals.keys()
        for name, ends in found.intervals.items():
            assert ends == pytest.approx(wanted.intervals[name], rel=2e-6), name


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=4), st.integers(4, 20), st.randoms())
def test_any_sharding_in_any_order(job, images, whole, cuts, batch, order):
    loader = DataLoader(images, batch_size=batch)
    ends = sorted({0, len(loader), *(c for c in cuts if c < len(loader))})
    parts = list(pairwise(ends))
    order.shuffle(parts)
    merged = job.totals()
    merged.merge(job.totals())  # a worker without any image
    for first, stop in parts:
        part, number = part_of(loader, first, stop)
        merged.merge(job.over(part, CPU, first=number)[0])
    assert_same(merged, whole)


def test_files_that_cannot_be_read_keep_their_numbers(job, tmp_path):
    g = torch.Generator().manual_seed(0)
    for i in range(30):
        pixels = torch.randint(0, 256, (6, 6, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i:02d}.png")
    for i in (1, *range(8, 12)):
        (tmp_path / f"{i:02d}.png").write_bytes(b"no image")
    loader = ImageFolderLoader(tmp_path, size=6, batch_size=4)
    job = ModelPass(Encoder().requires_grad_(False), SketchSettings(**KEYWORDS), ["end"])
    records = [(t := job.over(loader, CPU)[0]).record(name) for name in ("output", "end")]
    assert t.sketches["output"].rows == 25
    merged, unreadable = job.totals(), []
    for first, stop in ((2, 3), (0, 2), (3, 8)):
        part, number = part_of(loader, first, stop)
        assert number == 4 * first
        if first == 2:  # nothing of it can be read
            with pytest.raises(EmptyDataError):
                job.over(part, CPU, first=number)
        else:
            merged.merge(job.over(part, CPU, first=number)[0])
        unreadable += part.unreadable
    assert sorted(unreadable) == sorted(loader.unreadable)
    assert_same(merged, records)


def test_rows_of_one_image_are_no_sample_of_their_own(images, whole):
    """Intervals count images: hidden layers have them too, neighbours of such rows have none."""
    for record in whole:
        assert {"stable_rank", "participation_ratio"} <= record.intervals.keys()
        assert not {"mlid", "two_nn", "uniformity"} & record.intervals.keys()
    loader = DataLoader(images, batch_size=8)
    mean = measure(Encoder().double(), loader, ["end"], lid_k=4, blocks=10)
    assert {"mlid", "two_nn", "uniformity"} <= mean.layer("end").intervals.keys()


def test_rows_that_are_no_multiple_of_the_images():
    totals = ModelTotals(SketchSettings(**KEYWORDS), 1)
    g = torch.Generator().manual_seed(0)
    for start in (0, 7):
        totals.begin(start, 7)
        totals.take("odd", torch.randn(30, 4, generator=g))
    assert totals.record("odd").scalars["rows"] == 60


def test_the_output_is_measured_as_its_rows_in_a_file(images):
    """One number names a row in both, so that sample and blocks are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(4), nn.Flatten()).double()
    keywords = {"lid_size": 20, "lid_k": 3}
    report = measure(model, DataLoader(images, batch_size=5), [], **keywords)
    with torch.no_grad():
        rows = measure(model(images.tensors[0]), **keywords)
    assert report.output.scalars == pytest.approx(rows.output.scalars, rel=2e-6)
    assert report.output.intervals.keys() == rows.output.intervals.keys()
