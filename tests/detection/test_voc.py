"""What is read from a VOC-format folder, and what is refused."""

import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.datasets import read_datasets
from detection.voc import VOC_CLASSES, read_voc
from tests.detection.conftest import HEIGHT, NAMES, WIDTH, annotation, write_folder


def test_digits(digits_root):
    train, test, classes = read_datasets(
        {"ROOT": str(digits_root), "TRAIN": ["train"], "TEST": ["test"], "CLASSES": []}
    )
    assert classes == tuple(sorted(NAMES))
    assert (len(train.photographs), len(test.photographs)) == (10, 4)
    assert not train.skipped
    for photograph in train.photographs:
        pixels = np.asarray(Image.open(photograph.path), dtype=float).max(axis=2)
        for box in photograph.boxes:
            x0, y0, x1, y1 = map(int, box.corners)
            # The digit is inside its box: brighter there than the background ever is.
            assert pixels[y0:y1, x0:x1].max() > 150


def test_counted_from_one_with_the_last_pixel_inside(one_image):
    boxes = [("a", 1, 1, WIDTH, HEIGHT), ("b", 3, 5, 4, 9, True), ("c", 0, 0, WIDTH + 1, HEIGHT)]
    dataset = read_voc("train", one_image(annotation(boxes)))
    a, b, c = dataset.photographs[0].boxes
    assert a.corners == c.corners == (0, 0, WIDTH, HEIGHT)
    assert b.corners == (2, 4, 4, 9)
    assert (a.is_difficult, b.is_difficult) == (False, True)
    assert not dataset.skipped


def test_bad_boxes_are_counted_skipped_and_named(one_image, capsys):
    boxes = [
        ("good", 10, 10, 20, 20),
        ("over", 90, 10, WIDTH + 20, 30),
        ("away", 300, 300, 400, 400),
        ("negative", -7, 3, 12, 12),
        ("line", 10, 10, 10, 30),
        ("turned", 30, 30, 10, 10),
    ]
    root = one_image(annotation(boxes))
    dataset = read_voc("train", root)
    assert [box.name for box in dataset.photographs[0].boxes] == ["good"]
    reasons = [line.split(", ")[-1] for line in dataset.skipped]
    assert reasons == ["outside the image of 96x72"] * 3 + ["no area"] * 2
    assert dataset.skipped[0].startswith("image.xml: over [90, 10, 116, 30]")
    read_datasets({"ROOT": str(root), "TRAIN": ["train"], "TEST": ["test"], "CLASSES": []})
    printed = capsys.readouterr().out
    assert "train: 1 images, 1 boxes; 5 boxes skipped:" in printed
    assert "image.xml: line [10, 10, 10, 30], no area" in printed


@given(
    x=st.tuples(st.integers(1, WIDTH), st.integers(1, WIDTH)).filter(lambda p: p[0] < p[1]),
    y=st.tuples(st.integers(1, HEIGHT), st.integers(1, HEIGHT)).filter(lambda p: p[0] < p[1]),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_box_inside_is_kept(one_image, x, y):
    dataset = read_voc("train", one_image(annotation([("a", x[0], y[0], x[1], y[1])])))
    (box,) = dataset.photographs[0].boxes
    assert box.corners[2] - box.corners[0] == x[1] - x[0] + 1
    assert box.corners[3] - box.corners[1] == y[1] - y[0] + 1


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {c} "{f"&{p};" * 10}">' for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><annotation><object><name>&i;</name></object></annotation>"
)
EXTERNAL = (
    '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("<annotation><object>", "malformed XML"),
        ("", "malformed XML"),
        (BOMB, "declares document types or entities"),
        (EXTERNAL, "declares document types or entities"),
        ("<html></html>", "must start with <annotation>"),
        (annotation([("a", 1, 1, 9, 9)]).replace("<xmin>1</xmin>", ""), "without bndbox/xmin"),
        (annotation([("a", "one", 1, 9, 9)]), "bndbox/xmin must be a number, got 'one'"),
        (annotation([("a", "nan", 1, 9, 9)]), "must be a number"),
        (annotation([("a", 1, 1, "1e999", 9)]), "must be a number"),
        (annotation([("", 1, 1, 9, 9)]), "object without a name"),
        (annotation([("a", 1, 1, 9, 9)], width=640), "says 640x72 pixels, image.jpg has 96x72"),
        (annotation([]), "no box in its 1 images"),
    ],
)
def test_bad_annotation(one_image, xml, why):
    with pytest.raises(ValueError, match=why):
        read_voc("train", one_image(xml))


def test_without_defusedxml_it_says_what_to_install(one_image, monkeypatch):
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(ValueError, match="need defusedxml: pip install defusedxml"):
        read_voc("train", one_image(annotation([("a", 1, 1, 9, 9)])))


def test_images_in_folders_and_of_other_types(tmp_path):
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    boxes = [("größe $1", 1, 1, WIDTH, HEIGHT)]
    names = ["set 1/a b", "set 1/ünï.code"]
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder / "set 1").mkdir(parents=True)
    write_folder(tmp_path, {name: (pixels, annotation(boxes)) for name in names}, {"train": names})
    image = tmp_path / "JPEGImages" / f"{names[1]}.jpg"
    Image.open(image).save(image.with_suffix(".BMP"))
    image.unlink()
    xml = annotation(boxes).replace("<size>", "<filename>set 1/ünï.code.BMP</filename><size>")
    (tmp_path / "Annotations" / f"{names[1]}.xml").write_text(xml)
    dataset = read_voc("train", tmp_path)
    assert [photograph.image_id for photograph in dataset.photographs] == names
    assert dataset.photographs[1].path.name == "ünï.code.BMP"
    assert dataset.classes == ("größe $1",)
    # A file name that leads elsewhere is not followed.
    outside = xml.replace("set 1/", "../../")
    (tmp_path / "Annotations" / f"{names[1]}.xml").write_text(outside)
    with pytest.raises(ValueError, match="no file"):
        read_voc("train", tmp_path)


def test_size_left_out_is_the_image_s(one_image):
    for width in (0, ""):
        dataset = read_voc("train", one_image(annotation([("a", 1, 1, 9, 9)], width, width)))
        assert (dataset.photographs[0].width, dataset.photographs[0].height) == (WIDTH, HEIGHT)


def test_unknown_class(one_image):
    root = one_image(annotation([("cat", 1, 1, 9, 9)]))
    with pytest.raises(ValueError, match=r"image\.xml: unknown class 'cat'; known: dog, bird"):
        read_voc("train", root, classes=("dog", "bird"))


def test_missing_and_unreadable_files(one_image):
    root = one_image(annotation([("a", 1, 1, 9, 9)]))
    with pytest.raises(ValueError, match=r"split 'val': no file .*; there are: test, train"):
        read_voc("val", root)
    image = root / "JPEGImages" / "image.jpg"
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image\.jpg: cannot be read"):
        read_voc("train", root)
    image.unlink()
    with pytest.raises(ValueError, match="image image: no file"):
        read_voc("train", root)
    (root / "Annotations" / "image.xml").unlink()
    with pytest.raises(ValueError, match=r"image\.xml: no such file"):
        read_voc("train", root)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("../x\n", "leads out of the folder"),
        ("sub/../../x\n", "leads out of the folder"),
        ("/etc/x\n", "leads out of the folder"),
        ("..\\x\n", "leads out of the folder"),
        ("image\nimage", "twice"),
    ],
)
def test_bad_list(one_image, content, why):
    root = one_image(annotation([("a", 1, 1, 9, 9)]))
    (root / "ImageSets" / "Main" / "train.txt").write_text(content)
    with pytest.raises(ValueError, match=why):
        read_voc("train", root)


def test_voc_2007_2012_and_both(tmp_path, monkeypatch):
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for year, image_id in ((2007, "000005"), (2012, "2008_000001")):
        xml = annotation([("dog", 1, 1, 30, 30), ("person", 10, 10, 40, 40)])
        splits = {"trainval": [image_id], "test": [image_id]}
        write_folder(tmp_path / f"VOC{year}", {image_id: (pixels, xml)}, splits)
    both = read_voc("voc_0712_trainval", tmp_path, devkit=True)
    assert [photograph.image_id for photograph in both.photographs] == ["000005", "2008_000001"]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = {"TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "TEST": ["voc_2007_test"]}
    train, test, classes = read_datasets({"ROOT": "", "CLASSES": [], **names})
    assert classes == VOC_CLASSES
    assert len(classes) == 20
    assert train.boxes == 4
    assert test.name == "voc_2007_test"
    with pytest.raises(ValueError, match="unknown 'voc_2012_test'; known: voc_2007_train"):
        read_datasets({"ROOT": "", "CLASSES": [], **names, "TEST": ["voc_2012_test"]})
    twice = ["voc_2007_trainval", "voc_0712_trainval"]
    with pytest.raises(ValueError, match="share images"):
        read_datasets({"ROOT": "", "CLASSES": [], "TRAIN": twice, "TEST": twice})
    shutil.rmtree(tmp_path / "VOC2012")
    with pytest.raises(ValueError, match="split 'trainval': no file"):
        read_voc("voc_2012_trainval", tmp_path, devkit=True)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="--dataset-root: no folder"):
        read_datasets({"ROOT": str(tmp_path / "none"), "CLASSES": [], "TRAIN": [], "TEST": []})
