"""A small data set in VOC format: handwritten digits pasted on backgrounds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

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
