"""A small data set in VOC format: handwritten digits pasted on backgrounds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from detection.voc import read_voc

NAMES = ("zero", "one", "seven")
WIDTH, HEIGHT = 96, 72

TINY = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 72)", "INPUT.MIN_SIZE_TEST", "72", "SOLVER.BASE_LR", "0.01"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "60", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "40"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "60", "MODEL.RPN.POST_NMS_TOPK_TEST", "40"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.PRECISE_BN.NUM_ITER", "2", "SEED", "0"),
]


def annotation(boxes, width=WIDTH, height=HEIGHT):
    """XML of (name, xmin, ymin, xmax, ymax[, difficult])."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(bool(rest))}</difficult><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, *rest in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def write_folder(root: Path, images, splits):
    """`images`: id -> (pixels, XML); `splits`: name -> ids."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, (pixels, xml) in images.items():
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
    for split, ids in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def paste_digits(rng, digits):
    low, high = rng.integers(0, 60, 3), rng.integers(60, 120, 3)
    ramp = np.linspace(0, 1, WIDTH)[None, :, None]
    pixels = np.broadcast_to(low + ramp * (high - low), (HEIGHT, WIDTH, 3)).astype(np.uint8).copy()
    boxes = []
    for cell in rng.permutation(4)[: rng.integers(1, 4)]:
        label = rng.integers(len(NAMES))
        side = int(rng.integers(22, 32))
        digit = Image.fromarray(digits[label][rng.integers(len(digits[label]))])
        scaled = np.asarray(digit.resize((side, side)))
        x = int(cell % 2 * 48 + rng.integers(0, 48 - side))
        y = int(cell // 2 * 36 + rng.integers(0, 36 - side))
        patch = pixels[y : y + side, x : x + side]
        np.maximum(patch, scaled[..., None], out=patch)
        boxes.append((NAMES[label], x + 1, y + 1, x + side, y + side))
    return pixels, annotation(boxes)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    source = load_digits()
    scaled = (source.images * 255 / 16).astype(np.uint8)
    digits = [scaled[source.target == number] for number in (0, 1, 7)]
    rng = np.random.default_rng(0)
    images = {f"digits_{i}": paste_digits(rng, digits) for i in range(14)}
    ids = list(images)
    root = tmp_path_factory.mktemp("digits")
    write_folder(root, images, {"train": ids[:10], "test": ids[10:]})
    return root


@pytest.fixture
def one_image(tmp_path):
    """A function: write a folder with one image and this annotation."""

    def write(xml, image_id="image"):
        pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        write_folder(tmp_path, {image_id: (pixels, xml)}, {"train": [image_id], "test": [image_id]})
        return tmp_path

    return write


def coco_from_voc(source, target, split):
    """A split in VOC's format as one in COCO's: every other mask an octagon or a run length.

    The octagon has its corners on the box's edges; the run length is that of the ellipse inside.
    """
    dataset = read_voc(split, source)
    (target / "annotations").mkdir(parents=True, exist_ok=True)
    (target / "images").mkdir(exist_ok=True)
    names = {name: 10 * (i + 1) for i, name in enumerate(dataset.classes)}
    images, annotations = [], []
    for i, photograph in enumerate(dataset.photographs):
        width, height = photograph.width, photograph.height
        shutil.copy(photograph.path, target / "images" / photograph.path.name)
        image = {"id": i, "file_name": photograph.path.name, "width": width, "height": height}
        images.append(image)
        for box in photograph.boxes:
            x0, y0, x1, y1 = box.corners
            number = len(annotations)
            annotations.append(
                {
                    "id": number,
                    "image_id": i,
                    "category_id": names[box.name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": ellipse_runs(box.corners, width, height)
                    if number % 2
                    else [octagon(box.corners)],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in names.items()],
    }
    (target / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return content


def octagon(corners):
    x0, y0, x1, y1 = corners
    a, b = 0.3 * (x1 - x0), 0.3 * (y1 - y0)
    points = [(x0 + a, y0), (x1 - a, y0), (x1, y0 + b), (x1, y1 - b)]
    points += [(x1 - a, y1), (x0 + a, y1), (x0, y1 - b), (x0, y0 + b)]
    return [float(value) for point in points for value in point]


def ellipse_runs(corners, width, height):
    """Uncompressed run lengths, column by column, beginning with the background."""
    x0, y0, x1, y1 = corners
    y, x = np.mgrid[:height, :width] + 0.5
    radii = (x1 - x0) / 2, (y1 - y0) / 2
    inside = ((x - x0) / radii[0] - 1) ** 2 + ((y - y0) / radii[1] - 1) ** 2 <= 1
    flat = np.concatenate([[False], inside.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [flat.size - 1]]))
    return {"size": [height, width], "counts": [int(count) for count in counts]}


@pytest.fixture(scope="session")
def coco_root(digits_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    for split in ("train", "test"):
        coco_from_voc(digits_root, root, split)
    return root
