"""Image files as users have them: odd modes, turned, cut short."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightly_collapse.io.images import ImageFolderLoader, UnreadableImageError, open_rgb

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
