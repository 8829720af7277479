"""Photographs of unusual kinds: what is decoded, and what is refused by name."""

import numpy as np
import pytest
from PIL import Image

from detection.photographs import image_size, load_pixels
from detection.voc import read_voc
from tests.detection.conftest import annotation

RAMP = np.linspace(0, 1, 96)[None, :].repeat(72, 0)


def test_sixteen_bits_keep_their_grey_levels(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path)
    pixels = load_pixels(path)
    assert pixels.mean() / 255 == pytest.approx(0.5, abs=2e-3)
    assert np.abs(pixels[..., 1] / 255 - RAMP).max() <= 0.5 / 255 + 1e-4


def test_floating_point_levels_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff: cannot be read \(values of 32 bits"):
        load_pixels(tmp_path / "float.tiff")


def test_cmyk_palette_and_transparency(tmp_path):
    red = Image.new("RGB", (20, 10), (250, 10, 20))
    red.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    red.convert("RGBA").save(tmp_path / "alpha.png")
    for name, tolerance in (("print.jpg", 8), ("palette.png", 2), ("alpha.png", 0)):
        pixels = load_pixels(tmp_path / name)
        assert pixels.shape == (10, 20, 3)
        assert np.abs(pixels.astype(int) - (250, 10, 20)).max() <= tolerance


def test_exif_rotation_turns_the_pixels_and_the_size(tmp_path):
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert image_size(tmp_path / "turned.jpg") == (72, 96)
    pixels = load_pixels(tmp_path / "turned.jpg", (72, 96))
    assert pixels.shape == (96, 72, 3)
    assert pixels[:8].mean() < 20
    assert pixels[-8:].mean() > 235
    with pytest.raises(ValueError, match=r"turned\.jpg: has 72x96 pixels, its annotation says 96x"):
        load_pixels(tmp_path / "turned.jpg", (96, 72))


def test_truncated_and_enormous_files_are_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.jpg: cannot be read"):
        load_pixels(path)
    # 400 megapixels, of which the header alone is on the disk.
    header = bytearray(_png_of_one_pixel(tmp_path))
    header[16:24] = (20000).to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(_with_checksum(header))
    with pytest.raises(ValueError, match=r"huge\.png: cannot be read"):
        image_size(tmp_path / "huge.png")


def _png_of_one_pixel(folder):
    Image.new("L", (1, 1)).save(folder / "one.png")
    return (folder / "one.png").read_bytes()


def _with_checksum(png):
    from zlib import crc32  # noqa: PLC0415

    png[29:33] = crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


@pytest.mark.parametrize(
    ("word", "difficult"), [("true", True), ("Unspecified", False), ("1", True), ("", False)]
)
def test_difficult_as_tools_write_it(one_image, word, difficult):
    xml = annotation([("a", 1, 1, 9, 9)])
    xml = xml.replace("<difficult>0</difficult>", f"<difficult>{word}</difficult>")
    dataset = read_voc("train", one_image(xml))
    assert dataset.photographs[0].boxes[0].is_difficult is difficult


def test_boxes_between_0_and_1_an_unknown_encoding_and_a_byte_order_mark(one_image):
    root = one_image(annotation([("a", 0.1, 0.2, 0.6, 0.9)]))
    with pytest.raises(ValueError, match="fractions of the image"):
        read_voc("train", root)
    xml = f'<?xml version="1.0" encoding="x-none"?>{annotation([("a", 1, 1, 9, 9)])}'
    with pytest.raises(ValueError, match=r"image\.xml: malformed XML"):
        read_voc("train", one_image(xml))
    root = one_image(annotation([("a", 1, 1, 9, 9)]))
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfimage\r\n")
    assert read_voc("train", root).photographs[0].image_id == "image"
