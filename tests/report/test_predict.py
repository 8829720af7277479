"""The predict command: what it writes, what it says, and how it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from lightly_collapse.cli import main
from lightly_collapse.io.images import ImageFiles
from lightly_collapse.report.predict import TRANSFORMS, named_transform
from tests.page_reader import assert_self_contained, count_charts, count_images


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    (folder / "deeper").mkdir()
    for number in range(30):
        # Of different sizes and modes: the transform brings them to one.
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((20 + number % 5, 24))
        where = folder / "deeper" if number % 2 else folder
        image.convert("L" if number % 7 == 0 else "RGB").save(where / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def run(photographs, tmp_path_factory):
    output = tmp_path_factory.mktemp("prediction")
    status = main(
        ["predict", "--data", str(photographs), "--transform", "simclr", "--size", "16",
         "--views", "4", "--pool", "2", "--training-steps", "20", "--output", str(output)]
    )  # fmt: skip
    assert status == 0
    return output, json.loads((output / "prediction.json").read_text())


def test_json_holds_every_number(run):
    _, record = run
    assert (record["n_images"], record["n_views"], record["features"]) == (30, 4, 12)
    spectrum = record["spectrum"]
    assert len(spectrum) == record["width"] == 12
    assert spectrum == sorted(spectrum, reverse=True)
    # Recomputed from the definition.
    assert record["collapsed"] == sum(s < record["rtol"] * spectrum[0] for s in spectrum)
    p = np.array(spectrum) / sum(spectrum)
    p = p[p > 0]
    assert record["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    low, high = np.array(record["spectrum_interval"])
    assert (low <= spectrum).all()
    assert (spectrum <= high).all()
    assert record["collapsed_interval"][0] <= record["collapsed"] <= record["collapsed_interval"][1]
    assert [s["name"] for s in record["leave_one_out"]] == [
        "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale",
        "GaussianBlur",
    ]  # fmt: skip
    for step in record["leave_one_out"]:
        assert step["collapsed_cost"] == record["collapsed"] - step["collapsed"]
        cost = step["effective_rank"] - record["effective_rank"]
        assert step["effective_rank_cost"] == pytest.approx(cost)
    assert len(record["finite_time"]["spectrum"]) == 12


def test_page_stands_alone_and_says_what_it_is_worth(run):
    output, record = run
    page = (output / "report.html").read_text()
    assert (count_charts(page), count_images(page)) == (2, 1)
    assert_self_contained(page)
    assert f"{record['collapsed']} of 12 dimensions are predicted to fall" in page
    assert "30 images are few for 12 features" in page
    assert "What this is and is not worth" in page
    assert (output / "spectrum.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(list(output.iterdir())) == 3


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_named_transform_makes_views_of_colour_and_grey(name):
    for mode in ("RGB", "L"):
        views = named_transform(name, 32)(Image.new(mode, (40, 30)))
        assert len(views) >= 2
        assert views[0].shape == (len(mode), 32, 32)


def test_images_come_from_any_depth_in_colour(photographs):
    images = ImageFiles(photographs)
    assert len(images) == 30
    assert {images[k].mode for k in range(30)} == {"RGB"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "data must be `digits` or a folder of images, got /nowhere"),
        (["--data", "digits", "--transform", "sim"], "transform must be one of simclr, byol"),
        (["--data", "digits", "--size", "0"], "size must be between 1 and 8192, got 0"),
        (["--data", "digits", "--views", "1"], "views must be at least 2, got 1"),
        (["--data", "digits", "--width", "0"], "width must be at least 1, got 0"),
        (["--data", "digits", "--rtol", "2"], "rtol must be between 0 and 1, got 2.0"),
    ],
)
def test_refusals_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["predict", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.filterwarnings("ignore:.*the next image is taken for it")
def test_a_folder_without_images_and_broken_images_are_named(capsys, tmp_path):
    assert main(["predict", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "got none in" in capsys.readouterr().err
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"not a picture")
    assert main(["predict", "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert ".jpg" in error
    assert error.count("\n") == 1
