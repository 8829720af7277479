"""Image files as users have them: odd modes, turned, cut short."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightly_collapse.cli import main
from lightly_collapse.io.image_batches import ImageFolderLoader
from lightly_collapse.io.images import (
    ImageFiles,
    ReadableImages,
    UnreadableImageError,
    open_rgb,
)

GREEN = (0, 128, 0)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"grey.{suffix}"
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(path)
    read = np.asarray(open_rgb(path))
    assert read.shape == (16, 16, 3)
    assert (read == np.arange(256).reshape(16, 16, 1)).all()


def test_values_without_a_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(UnreadableImageError, match="range"):
        open_rgb(path)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "turned.png"
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(path, exif=exif)
    assert open_rgb(path).size == ((4, 6) if turn > 4 else (6, 4))


def test_modes(tmp_path: Path) -> None:
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette(GREEN)
    palette.save(tmp_path / "palette.png", transparency=0)
    frames = [Image.new("RGB", (5, 5), colour) for colour in (GREEN, (200, 0, 0))]
    frames[0].save(tmp_path / "animated.webp", save_all=True, append_images=frames[1:], lossless=1)
    Image.new("CMYK", (5, 5), (255, 127, 255, 0)).save(tmp_path / "cmyk.tif")
    for path in tmp_path.iterdir():
        image = open_rgb(path)
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == GREEN, path.name


def test_damaged_files_are_counted_and_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / "whole.png"
    Image.fromarray(noise).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    loader = ImageFolderLoader(tmp_path, size=8)
    assert sum(len(batch) for batch in loader) == 1
    assert [Path(line.split(":")[0]).name for line in loader.unreadable] == [
        "bomb.png",
        "cut.png",
        "empty.jpg",
        "text.png",
    ]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Images of one class, as users have them: 9 that can be read, and 4 that cannot."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    folder = tmp_path / "images" / "train" / "a"
    folder.mkdir(parents=True)
    colours = Image.fromarray(noise(40, 40, 3))
    colours.save(folder / "plain.png")
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.convert("L").save(folder / "grey.jpg")
    colours.convert("RGBA").save(folder / "alpha.png")
    colours.convert("P").save(folder / "palette.png", transparency=0)
    colours.save(folder / "animated.gif", save_all=True, append_images=[colours.rotate(90)])
    Image.fromarray((noise(40, 40).astype(np.uint16)) << 8).save(folder / "deep.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    (folder / "jpeg.png").write_bytes((folder / "cmyk.jpg").read_bytes())
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    (tmp_path / "images" / "val").symlink_to(folder.parent)
    return tmp_path / "images"


UNREADABLE = ("bomb.png", "cut.png", "empty.jpg", "text.png")


def test_measure_counts_and_names_what_it_cannot_read(photographs, tmp_path, capsys):
    words = ["measure", "--arch", "resnet18", "--data", str(photographs / "train")]
    assert main([*words, "--image-size", "16", "--output", str(tmp_path / "out")]) == 0
    notes = " ".join(json.loads((tmp_path / "out" / "measure.json").read_text())["notes"])
    assert "4 images could not be read and were left out" in notes
    assert all(name in notes for name in UNREADABLE)


def test_predict_counts_and_names_what_it_cannot_read(photographs, tmp_path, capsys):
    words = ["predict", "--data", str(photographs / "train"), "--size", "8", "--views", "2"]
    with pytest.warns(UserWarning, match="the next image is taken for it"):
        assert main([*words, "--output", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 images could not be read" in out
    found = json.loads((tmp_path / "out" / "prediction.json").read_text())["unreadable"]
    assert sorted(Path(line.split(":")[0]).name for line in found) == list(UNREADABLE)


@pytest.mark.parametrize("data", ["ImageFolder", "SmallImageFolder", "LightlyFolder"])
def test_pretraining_names_what_it_cannot_read(photographs, tmp_path, data):
    root = photographs / "train" if data == "LightlyFolder" else photographs
    words = ["--model", "SimCLR", "--model.backbone.stem", "cifar", "--model.backbone.width", "4"]
    words += ["--data", data, "--data.root", str(root), "--data.image_size", "16"]
    words += ["--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.logger", "false"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.enable_model_summary", "false", "--trainer.limit_val_batches", "1"]
    with pytest.warns(UserWarning, match="png") as warned:
        assert main(["pretrain", *words, "--output", str(tmp_path / "out")]) == 0
    said = " ".join(str(warning.message) for warning in warned)
    assert any(name in said for name in UNREADABLE)
    assert all(name in said for name in UNREADABLE) or data == "LightlyFolder"
    assert (tmp_path / "out" / "last.ckpt").is_file()


def test_the_next_image_is_taken_for_one_that_cannot_be_read(photographs):
    files = ImageFiles(photographs / "train")
    images = ReadableImages(files)
    places = {path.name: i for i, path in enumerate(files.paths)}
    with pytest.warns(UserWarning, match=r"text\.png"):
        image = images[places["text.png"]]  # the last: the first is taken
    assert np.array_equal(np.asarray(image), np.asarray(files[0]))
    assert [Path(line.split(":")[0]).name for line in images.unreadable] == ["text.png"]
