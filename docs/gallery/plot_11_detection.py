"""From a backbone to a detector
=============================

:func:`~lightly_collapse.export.to_detectron2` writes a backbone in the form that detectron2's and
torchvision's detectors load. Here a small Faster R-CNN is fine-tuned from it on a few photographs.
Run it from a checkout, with `pip install -e '.[detection]'`: the trainers are not in the package.
"""

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torchvision.models import resnet18

import detection
from detection.results import read_predictions
from detection.train_torchvision import main as train_torchvision
from lightly_collapse.export import read_detectron2, to_detectron2

folder = Path(tempfile.mkdtemp())

# %%
# **The photographs**: parts of the two that scikit-learn ships, a temple and a flower, with
# handwritten digits printed on them. The boxes are written as PASCAL VOC has them: one XML file an
# image, and a list of the images of each split.

rng = np.random.default_rng(0)
photographs = load_sample_images().images
scans = load_digits()
width, height, cell = 360, 240, 120


def draw():
    """An image, and the corners of every digit in it."""
    photograph = photographs[rng.integers(2)]
    top, left = (rng.integers(size) for size in np.array(photograph.shape[:2]) // 2 - 10)
    part = Image.fromarray(photograph[top : top + 200, left : left + 300]).resize((width, height))
    pixels, corners = np.array(part), []
    for place in rng.choice(6, rng.integers(2, 4), replace=False):
        side = int(rng.integers(72, 102))
        ink = Image.fromarray((scans.images[rng.integers(1797)] * 15.9).astype(np.uint8))
        ink = np.asarray(ink.resize((side, side)))[..., None] / 255
        x = place % 3 * cell + int(rng.integers(cell - side))
        y = place // 3 * cell + int(rng.integers(cell - side))
        patch = pixels[y : y + side, x : x + side]
        patch[:] = (1 - ink) * patch + ink * [255, 220, 40]
        corners.append((x, y, x + side, y + side))
    return pixels, corners


for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
    (folder / name).mkdir(parents=True)
truth = {}
for split, count in (("train", 24), ("test", 6)):
    names = [f"{split}{i}" for i in range(count)]
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    for name in names:
        pixels, truth[name] = draw()
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        boxes = "".join(
            f"<object><name>digit</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1 in truth[name]
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{size}{boxes}</annotation>"
        )

# %%
# **The export.** The backbone of a checkpoint of yours belongs here; this one has random weights.
# A configuration that fits the weights is written beside them.

torch.manual_seed(0)
export = to_detectron2(resnet18(), folder / "r18.pkl")
print(f"ResNet-{export.shape.depth}: {export.converted} tensors, {len(export.left_out)} left out")
print("the first:", *list(read_detectron2(folder / "r18.pkl"))[:3])

# %%
# **Fine-tuning**, by the command's own function: on a command line it is
# ``python -m detection.train_torchvision`` with the same words.

status = train_torchvision(
    [
        *("--config-file", f"{Path(detection.__file__).parents[1]}/configs/detection/small.yaml"),
        *("--dataset-root", str(folder), "--num-gpus", "0"),
        *("MODEL.WEIGHTS", str(folder / "r18.pkl"), "OUTPUT_DIR", str(folder / "run"), "SEED", "0"),
        *("INPUT.MIN_SIZE_TRAIN", "(72, 80, 88)", "INPUT.MIN_SIZE_TEST", "80"),
        *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "128"),
        *("SOLVER.MAX_ITER", "80", "SOLVER.STEPS", "(65,)", "TEST.PRECISE_BN.NUM_ITER", "6"),
        *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.1"),  # no digit overlaps another
    ]
)
assert status == 0
result = json.loads((folder / "run" / "result.json").read_text())
print(f"AP50 {result['AP50']:.1f} on {result['images']} photographs that it has not seen")

# %%
# **What it finds** on photographs that it has not seen: dashed where the digits are, solid what
# the detector finds, with its score.

found = {p.image_id: p for p in read_predictions(folder / "run")}
fig, axes = plt.subplots(2, 3, figsize=(9, 4.2))
for ax, (name, prediction) in zip(axes.flat, found.items(), strict=True):
    ax.imshow(Image.open(folder / "JPEGImages" / f"{name}.jpg"))
    ax.set_axis_off()
    for x0, y0, x1, y1 in truth[name]:
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ls="--", color="white"))
    for (x0, y0, x1, y1), score in zip(prediction.boxes, prediction.scores, strict=True):
        if score > 0.6:
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=2, color="cyan"))
            ax.text(x0 + 4, y1 - 6, f"{score:.2f}", color="cyan", fontsize=9)
fig.tight_layout()
plt.show()
