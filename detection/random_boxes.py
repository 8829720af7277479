"""The average precision of random boxes: the floor under every detector on a data set.

    python -m detection.random_boxes --root bccd_voc

Sizes and classes are drawn from the training boxes, places and scores uniformly.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from detection.average_precision import Prediction, average_precision
from detection.config import OneLineParser, run_command
from detection.photographs import Dataset, Photograph
from detection.results import describe_scores
from detection.voc import read_voc


def guess(photograph: Photograph, train: Dataset, count: int, rng: random.Random) -> Prediction:
    """`count` boxes of the training set, anywhere in the image."""
    known = [box for other in train.photographs for box in other.boxes]
    drawn = rng.choices(known, k=count)
    boxes = []
    for box in drawn:
        x0, y0, x1, y1 = box.corners
        width, height = min(x1 - x0, photograph.width), min(y1 - y0, photograph.height)
        x = rng.uniform(0, photograph.width - width)
        y = rng.uniform(0, photograph.height - height)
        boxes.append([x, y, x + width, y + height])
    classes = [train.classes.index(box.name) for box in drawn]
    return Prediction(photograph.image_id, boxes, [rng.random() for _ in drawn], classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Print AP and AP50 for some seeds; the exit status is that of `run_command`."""
    parser = OneLineParser("detection.random_boxes", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="a VOC-format folder")
    parser.add_argument("--train", default="train", help="split that sizes are drawn from")
    parser.add_argument("--test", default="test", help="split to guess on")
    parser.add_argument("--boxes", type=int, default=100, help="in each image")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args(argv)

    def run() -> None:
        if arguments.boxes < 1:
            raise ValueError(f"--boxes must be at least 1, got {arguments.boxes}")
        train = read_voc(arguments.train, arguments.root)
        test = read_voc(arguments.test, arguments.root, train.classes)
        for seed in arguments.seeds:
            rng = random.Random(seed)
            guesses = [
                guess(photograph, train, arguments.boxes, rng) for photograph in test.photographs
            ]
            scores = average_precision(test, guesses, train.classes)
            print(f"seed {seed}: {describe_scores(scores)}")

    return run_command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
