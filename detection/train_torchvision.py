"""Fine-tune an exported backbone with torchvision's Faster R-CNN, and measure AP.

The same arguments, configurations, data and result file as detection.train_net, from pip alone:

    python -m detection.train_torchvision --config-file configs/detection/small.yaml \
        --dataset-root bccd_voc MODEL.WEIGHTS r18.pkl OUTPUT_DIR runs/r18

A run is a function of its configuration and SEED alone: interrupted and resumed, it ends with the
same weights. There is one process; for several GPUs there is detection.train_net.
"""

import argparse
import json
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.functional import pil_to_tensor

from detection import voc
from detection.config import Config, dump_config, load_config, make_parser
from detection.datasets import read_datasets
from detection.model_torchvision import Detector, build_model
from detection.results import Prediction, write_result
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write

_LOG_PERIOD = 20
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def load_image(path: Path) -> Tensor:
    """An image as float32 in 0..1, (3, height, width), turned as its EXIF tag says."""
    with Image.open(path) as image:
        pixels: Tensor = pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    return pixels.float() / 255


class Draws(TorchDataset[tuple[Tensor, dict[str, Tensor]]]):
    """The n-th training example, for any n: which image and whether mirrored depend on n alone."""

    def __init__(
        self, photographs: Sequence[voc.Photograph], classes: Sequence[str], flip: bool, seed: int
    ) -> None:
        self.photographs = photographs
        self.classes = classes
        self.flip = flip
        self.seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, place = divmod(n, len(self.photographs))
        if self._order[0] != epoch:
            all_places = range(len(self.photographs))
            order = random.Random(f"order {self.seed} {epoch}").sample(all_places, len(all_places))
            self._order = (epoch, order)
        photograph = self.photographs[self._order[1][place]]
        image = load_image(photograph.path)
        boxes = torch.tensor([box.corners for box in photograph.boxes]).reshape(-1, 4)
        if self.flip and random.Random(f"flip {self.seed} {n}").random() < 0.5:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, ::2] = image.shape[-1] - boxes[:, ::2]
        # Class 0 is torchvision's background.
        labels = torch.tensor(
            [1 + self.classes.index(box.name) for box in photograph.boxes], dtype=torch.int64
        )
        return image, {"boxes": boxes, "labels": labels}


def train(config: Config, resume: bool = False, eval_only: bool = False) -> dict[str, Any]:
    """Train as configured, evaluate, and write the files of a run into OUTPUT_DIR.

    Args:
        config: as `load_config` gives it.
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one.
        eval_only: evaluate the last checkpoint (with `resume`) or MODEL.WEIGHTS only.

    Returns:
        The content of result.json.

    Raises:
        ValueError: if data, weights or configuration are at fault, or the loss is not finite.
        OSError: if a file cannot be read or written.
    """
    started = time.perf_counter()
    device = torch.device(config["MODEL"]["DEVICE"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE: no GPU here; give --num-gpus 0 or MODEL.DEVICE cpu")
    training_set, test_set, classes = read_datasets(config["DATASETS"], eval_only)
    config["DATASETS"]["CLASSES"] = list(classes)
    config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = len(classes)
    seed = max(config["SEED"], 0)
    folder = Path(config["OUTPUT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.yaml", lambda file: file.write(dump_config(config).encode()))

    torch.manual_seed(seed)
    model = build_model(config).to(device)
    optimizer = _build_optimizer(config, model)
    state = _load_checkpoint(folder, model, optimizer) if resume else {}
    first, before = state.get("iteration", 0), state.get("seconds", 0.0)
    solver = config["SOLVER"]
    if not eval_only:
        with_boxes = [photograph for photograph in training_set.photographs if photograph.boxes]
        keep_empty = not config["DATALOADER"]["FILTER_EMPTY_ANNOTATIONS"]
        draws = Draws(
            training_set.photographs if keep_empty else with_boxes,
            classes,
            config["INPUT"]["RANDOM_FLIP"] == "horizontal",
            seed,
        )
        batches = _batches(draws, config, first, solver["MAX_ITER"])
        log = _Log(folder / "metrics.json", first)
        model.train()
        for iteration in range(first, solver["MAX_ITER"]):
            rate = _learning_rate(solver, iteration)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images, targets = next(batches)
            losses = _step(model, optimizer, images, targets, f"{seed} {iteration}")
            done = iteration + 1
            is_last = done == solver["MAX_ITER"]
            log.add(iteration, losses, rate, is_last)
            seconds = before + time.perf_counter() - started
            if is_last and config["TEST"]["PRECISE_BN"]["ENABLED"]:
                _precise_batch_norm(model, draws, config, seed)
            if is_last or done % solver["CHECKPOINT_PERIOD"] == 0:
                name = "model_final.pth" if is_last else f"model_{iteration:07d}.pth"
                content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                content |= {"iteration": done, "seconds": seconds}
                _save_checkpoint(folder, name, content)
            period = config["TEST"]["EVAL_PERIOD"]
            if period and done % period == 0 and not is_last:
                predictions = predict(model, test_set, device)
                facts = _facts(config, seed, done, seconds)
                write_result(folder, test_set, predictions, classes, {**facts, "is_final": False})
                model.train()
    predictions = predict(model, test_set, device)
    seconds = before + time.perf_counter() - started
    iterations = first if eval_only else solver["MAX_ITER"]
    facts = {**_facts(config, seed, iterations, seconds), "is_final": True}
    return write_result(folder, test_set, predictions, classes, facts)


@torch.no_grad()
def predict(model: Detector, dataset: voc.Dataset, device: torch.device) -> list[Prediction]:
    """The detections in every photograph of a dataset, one at a time."""
    model.eval()
    predictions = []
    for photograph in dataset.photographs:
        (found,) = model([load_image(photograph.path).to(device)])
        predictions.append(
            Prediction(
                photograph.image_id,
                found["boxes"].tolist(),
                found["scores"].tolist(),
                (found["labels"] - 1).tolist(),
            )
        )
    return predictions


def _facts(config: Config, seed: int, iterations: int, seconds: float) -> dict[str, Any]:
    return {
        "trainer": "torchvision",
        "weights": config["MODEL"]["WEIGHTS"],
        "seed": seed,
        "iterations": iterations,
        "seconds": round(seconds, 1),
    }


def _batches(draws: Draws, config: Config, first: int, last: int) -> Iterator[Batch]:
    size = config["SOLVER"]["IMS_PER_BATCH"]
    loader: DataLoader[Any] = DataLoader(
        draws,
        batch_size=size,
        sampler=range(first * size, last * size),
        num_workers=config["DATALOADER"]["NUM_WORKERS"],
        collate_fn=_collate,
    )
    return iter(loader)


def _collate(examples: list[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    return [image for image, _ in examples], [target for _, target in examples]


def _step(
    model: Detector,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    randomness: str,
) -> dict[str, float]:
    device = next(model.parameters()).device
    # Scales and sampled proposals are a function of the iteration, so that resuming repeats them.
    torch.manual_seed(random.Random(f"step {randomness}").getrandbits(63))
    losses = model(
        [image.to(device) for image in images],
        [{key: value.to(device) for key, value in target.items()} for target in targets],
    )
    total = torch.stack(list(losses.values())).sum()
    if not total.isfinite():
        raise ValueError(
            f"loss: {total.item()} at iteration {randomness.split(' ')[1]}; lower "
            f"SOLVER.BASE_LR or raise SOLVER.WARMUP_ITERS"
        )
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    values = {name: value.item() for name, value in losses.items()}
    return {"total_loss": sum(values.values()), **values}


def _build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    solver = config["SOLVER"]
    norms = {p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p not in norms], "weight_decay": solver["WEIGHT_DECAY"]},
        {"params": [p for p in trained if p in norms], "weight_decay": solver["WEIGHT_DECAY_NORM"]},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=solver["BASE_LR"],
        momentum=solver["MOMENTUM"],
    )


def _learning_rate(solver: dict[str, Any], iteration: int) -> float:
    """Linear warm-up, then steps: detectron2's WarmupMultiStepLR."""
    rate = solver["BASE_LR"] * solver["GAMMA"] ** bisect_right(solver["STEPS"], iteration)
    if iteration < solver["WARMUP_ITERS"]:
        part = iteration / solver["WARMUP_ITERS"]
        rate *= solver["WARMUP_FACTOR"] * (1 - part) + part
    return float(rate)


class _WithTargets(nn.Module):
    """What `update_bn` needs: one argument."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        transformed, _ = self.model.transform(images)
        return list(self.model.backbone(transformed.tensors).values())


def _precise_batch_norm(model: Detector, draws: Draws, config: Config, seed: int) -> None:
    """Replace running averages by those over fresh batches under the final weights."""
    iterations = config["TEST"]["PRECISE_BN"]["NUM_ITER"]
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    batches = (
        [[image.to(device) for image in b[0]]] for b in _batches(draws, config, 0, iterations)
    )
    update_bn(batches, _WithTargets(model))


def _save_checkpoint(folder: Path, name: str, content: dict[str, Any]) -> None:
    atomic_write(folder / name, lambda file: torch.save(content, file))
    tag = folder / "last_checkpoint"
    previous = folder / tag.read_text() if tag.is_file() else None
    atomic_write(tag, lambda file: file.write(name.encode()))
    if previous is not None and previous.name != name:
        previous.unlink(missing_ok=True)


def _load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    tag = folder / "last_checkpoint"
    if not tag.is_file():
        return {}
    state = read_checkpoint(folder / tag.read_text())
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {folder / tag.read_text()}: of another configuration than this run's"
        ) from error
    print(f"resuming from {folder / tag.read_text()} after {state['iteration']} iterations")
    return state


class _Log:
    """metrics.json as detectron2 writes it: one JSON object a line, every 20 iterations."""

    def __init__(self, path: Path, first: int) -> None:
        lines = path.read_text().splitlines() if first and path.is_file() else []
        # What an interrupted run logged after its last checkpoint is done again.
        kept = [line for line in lines if _is_before(line, first)]
        atomic_write(path, lambda file: file.write("".join(f"{k}\n" for k in kept).encode()))
        self.path = path
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, iteration: int, losses: dict[str, float], rate: float, is_last: bool) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if (iteration + 1) % _LOG_PERIOD and not is_last:
            return
        means = {name: value / self.count for name, value in self.sums.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"iteration": iteration, "lr": rate, **means}) + "\n")
        print(
            f"iteration {iteration + 1}: loss {means['total_loss']:.3f}, lr {rate:.5f}", flush=True
        )
        self.sums, self.count = {}, 0


def _is_before(line: str, first: int) -> bool:
    try:
        return bool(json.loads(line)["iteration"] < first)
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 after one line where an argument or an input is at fault."""
    parser = make_parser(__doc__.splitlines()[0])
    arguments = parser.parse_args(argv)
    try:
        config = _configure(arguments)
        result = train(config, resume=arguments.resume, eval_only=arguments.eval_only)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    scores = ", ".join(f"{name} {result[name]:.2f}" for name in ("AP", "AP50", "AP75"))
    print(f"{scores} on {result['dataset']} after {result['seconds']:.0f} s")
    print(f"wrote {Path(config['OUTPUT_DIR']) / 'result.json'}")
    return 0


def _configure(arguments: argparse.Namespace) -> Config:
    if arguments.num_gpus not in {0, 1}:
        raise ValueError(
            f"--num-gpus: must be 0 or 1 with torchvision, got {arguments.num_gpus}; "
            f"detection.train_net trains on several"
        )
    config = load_config(arguments.config_file, arguments.opts)
    if arguments.num_gpus == 0:
        config["MODEL"]["DEVICE"] = "cpu"
    if arguments.dataset_root is not None:
        config["DATASETS"]["ROOT"] = str(arguments.dataset_root)
    if arguments.classes:
        config["DATASETS"]["CLASSES"] = list(arguments.classes)
    return config


if __name__ == "__main__":
    sys.exit(main())
