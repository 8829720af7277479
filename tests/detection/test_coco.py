"""COCO's format: masks as polygons and run lengths, and what is refused."""

import copy
import json

import numpy as np
import pytest

from detection.average_precision import Prediction, average_precision, decode_mask, encode_mask
from detection.coco import _decode_runs, read_coco
from detection.datasets import read_datasets
from detection.results import write_result
from tests.detection.conftest import ellipse_runs, octagon

pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")


@pytest.fixture
def one(coco_root, tmp_path):
    """A function: the test split with a change to its content, as (folder, content)."""
    content = json.loads((coco_root / "annotations" / "test.json").read_text())

    def write(change=lambda content: None):
        changed = copy.deepcopy(content)
        change(changed)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        if not (tmp_path / "images").exists():
            (tmp_path / "images").symlink_to(coco_root / "images")
        (tmp_path / "annotations" / "test.json").write_text(json.dumps(changed))
        return tmp_path

    return write


def test_read_as_annotated(coco_root):
    dataset = read_coco("test", coco_root, with_masks=True)
    content = json.loads((coco_root / "annotations" / "test.json").read_text())
    assert dataset.categories == ("one", "seven", "zero")
    assert dataset.boxes == len(content["annotations"])
    assert dataset.has_masks
    first = content["annotations"][0]
    x, y, w, h = first["bbox"]
    assert dataset.photographs[0].boxes[0].corners == (x, y, x + w, y + h)


def test_areas_of_an_octagon_and_an_ellipse():
    corners = (10.0, 8.0, 50.0, 38.0)
    runs = decode_mask(ellipse_runs(corners, 96, 72), 72, 96)
    assert runs.shape == (72, 96)
    assert runs.sum() == pytest.approx(np.pi / 4 * 40 * 30, rel=0.02)
    polygon = decode_mask([octagon(corners)], 72, 96)
    # Four triangles of 0.3 by 0.3 sides are missing from the rectangle.
    assert polygon.sum() == pytest.approx(40 * 30 * (1 - 4 * 0.3 * 0.3 / 2), rel=0.05)
    for mask in (runs, polygon):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (columns[0], columns[-1] + 1) == pytest.approx((10, 50), abs=1)
        assert (rows[0], rows[-1] + 1) == pytest.approx((8, 38), abs=1)
        assert (decode_mask(encode_mask(mask), 72, 96) == mask).all()


def test_mask_ap_is_in_the_result(coco_root, tmp_path):
    dataset = read_coco("test", coco_root, with_masks=True)
    classes = list(dataset.classes)

    def perfect(photograph, shrunk=False):
        masks = [decode_mask(b.mask, photograph.height, photograph.width) for b in photograph.boxes]
        if shrunk:  # boxes right, masks a corner of what they should be
            for mask in masks:
                mask[:, np.flatnonzero(mask.any(0))[3:]] = False
        return Prediction(
            photograph.image_id,
            [list(b.corners) for b in photograph.boxes],
            [0.9] * len(masks),
            [classes.index(b.name) for b in photograph.boxes],
            [encode_mask(mask) for mask in masks],
        )

    found = [perfect(photograph) for photograph in dataset.photographs]
    result = write_result(tmp_path, dataset, found, classes, {"seed": 0})
    assert result["AP"] == result["masks"]["AP"] == pytest.approx(100)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == len(found)
    wrong = [perfect(photograph, shrunk=True) for photograph in dataset.photographs]
    result = write_result(tmp_path, dataset, wrong, classes, {"seed": 0})
    assert result["AP"] == pytest.approx(100)
    assert result["masks"]["AP50"] == 0


def test_ap_by_size(coco_root):
    dataset = read_coco("test", coco_root)
    classes = list(dataset.classes)
    small = [
        Prediction(
            p.image_id,
            [list(b.corners) for b in p.boxes if (b.corners[2] - b.corners[0]) < 32],
            [0.9 for b in p.boxes if (b.corners[2] - b.corners[0]) < 32],
            [classes.index(b.name) for b in p.boxes if (b.corners[2] - b.corners[0]) < 32],
        )
        for p in dataset.photographs
    ]
    scores = average_precision(dataset, small, classes)
    # The digits have sides of 22 to 31 pixels: all small, none medium or large.
    assert scores["AP small"] == pytest.approx(100)
    assert scores["AP medium"] is scores["AP large"] is None


def test_an_annotation_without_a_box_is_skipped_and_named(one):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][1]["bbox"] = []

    dataset = read_coco("test", one(change))
    assert len(dataset.skipped) == 2
    assert "test.json: object 0" in dataset.skipped[0]
    assert "no box" in dataset.skipped[1]


def first(key, value):
    return lambda content: content["annotations"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "image gone.jpg of .*: no file"),
        (lambda c: c["images"][0].update(file_name="../gone.jpg"), "leads out of the folder"),
        (lambda c: c["images"][0].update(file_name=None), "without file_name"),
        (lambda c: c["images"][0].update(width=640), "say 640x72 pixels"),
        (lambda c: c["images"][0].update(width=72, height=96), "96x72 as displayed: .* EXIF"),
        (
            lambda c: [a.update(bbox=[0.1, 0.1, 0.5, 0.5], area=0.25) for a in c["annotations"]],
            "between 0 and 1: fractions",
        ),
        (lambda c: c["images"].append(c["images"][0]), "listed twice"),
        (lambda c: c.pop("categories"), "under 'categories'"),
        (lambda c: c["categories"].append(c["categories"][0]), "categories"),
        (first("category_id", 99), "99"),
        (first("image_id", 99), "unknown images 99"),
        (first("bbox", [1, 2, 3]), "must be a list of 4 numbers"),
        (first("bbox", [1, 2, "x", 4]), "finite numbers"),
        (first("bbox", [10**400, 1, 1, 1]), "finite numbers"),
        (
            first("image_id", [1]),
            r"image_id in 'annotations' must be a number or a name, got \[1\]",
        ),
        (first("segmentation", [[1, 2, 3, 4]]), "three points"),
        (first("segmentation", {"size": [1, 1], "counts": [1]}), "of size"),
        (first("segmentation", {"size": [72, 96], "counts": [5]}), "sum to 5"),
        (first("segmentation", {"size": [72, 96], "counts": "0"}), "sum to 0, not 72 x 96"),
        (first("segmentation", {"size": [72, 96], "counts": "PP"}), "of size"),
        (first("segmentation", {"size": [72, 96], "counts": "é"}), "of size"),
        (first("segmentation", {"size": [72, 96], "counts": "o" * 1000}), "of size"),
        (first("segmentation", None), "has no segmentation"),
    ],
)
def test_refused(one, change, why):
    with pytest.raises(ValueError, match=why):
        read_coco("test", one(change), with_masks=True)


def test_compressed_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = rng.random((37, 53)) < share
        counts = encode_mask(mask)["counts"]
        flat = np.concatenate([[False], mask.T.ravel()])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        wanted = np.diff(np.concatenate([[0], changes, [mask.size]]))
        assert _decode_runs(counts) == wanted.tolist()


def test_polygons_stay_polygons_unless_there_are_run_lengths(one):
    def polygons_only(content):
        kept = [a for a in content["annotations"] if isinstance(a["segmentation"], list)]
        size = [content["images"][0][side] for side in ("height", "width")]
        crowd = {"size": size, "counts": [size[0] * size[1]]}
        content["annotations"] = [*kept, {**kept[0], "iscrowd": 1, "segmentation": crowd, "id": 99}]

    dataset = read_coco("test", one(polygons_only), with_masks=True)
    assert dataset.photographs[0].boxes[-1].is_crowd
    # The crowd's run lengths are not trained on.
    assert not dataset.has_run_lengths
    assert read_coco("test", one(), with_masks=True).has_run_lengths


def test_malformed_json_and_a_format_without_masks(one, digits_root):
    root = one()
    (root / "annotations" / "test.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="malformed JSON"):
        read_coco("test", root)
    settings = {"ROOT": str(digits_root), "TRAIN": ["train"], "TEST": ["test"], "CLASSES": []}
    with pytest.raises(ValueError, match="MASK_ON needs masks"):
        read_datasets(settings, with_masks=True)
