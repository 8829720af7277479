"""Training, evaluation and resumption with torchvision's detectors, in one process."""

import dataclasses
import json
import random
import re
import time
from bisect import bisect_right
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from typing_extensions import override

from detection.average_precision import Prediction, encode_mask
from detection.datasets import read_datasets
from detection.layer_decay import learning_rate_factor
from detection.photographs import Dataset
from detection.results import NOTHING_TO_EVALUATE, RunRecord, write_result
from detection.torchvision.config import Config, detector_of, dump_config
from detection.torchvision.examples import (
    Batch,
    Examples,
    batches,
    load_image,
    trained_photographs,
)
from detection.torchvision.model import build_model, freeze
from detection.torchvision.weights import load_weights
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.io.locks import hold_folder

_LOG_PERIOD = 20
_PERIODIC = re.compile(r"model_(\d{7}|final)\.pth")


def train(
    config: Config, resume: bool = False, eval_only: bool = False, allow_partial: bool = False
) -> dict[str, Any]:
    """Train as configured, evaluate, and write the files of a run into OUTPUT_DIR.

    Args:
        config: as `load_config` gives it.
        resume: start from the last checkpoint in OUTPUT_DIR, if there is one.
        eval_only: evaluate the last checkpoint (with `resume`) or MODEL.WEIGHTS only.
        allow_partial: accept MODEL.WEIGHTS that lack some of the backbone's tensors.

    Returns:
        The content of result.json.

    Raises:
        ValueError: if data, weights or configuration are at fault.
        FloatingPointError: if the training diverges.
        OSError: if a file cannot be read or written.
    """
    with hold_folder(check_writable_folder(config["OUTPUT_DIR"])):
        run = Run(config, resume, eval_only, allow_partial)
        if not eval_only:
            run.train()
        return run.evaluate()


class Run:
    """One fine-tuning: data, detector and optimizer, at some iteration.

    Args:
        config: as `load_config` gives it.
        resume: as for `train`.
        eval_only: as for `train`.
        allow_partial: as for `train`.
    """

    def __init__(
        self,
        config: Config,
        resume: bool = False,
        eval_only: bool = False,
        allow_partial: bool = False,
    ) -> None:
        self._started = time.perf_counter()
        self.config, self.solver = config, config["SOLVER"]
        model = config["MODEL"]
        self.device = torch.device(model["DEVICE"])
        self.with_masks = model["MASK_ON"]
        self.training_set, self.test_set, self.classes = read_datasets(
            config["DATASETS"], eval_only, self.with_masks
        )
        config["DATASETS"]["CLASSES"] = list(self.classes)
        model["ROI_HEADS"]["NUM_CLASSES"] = len(self.classes)
        model["RETINANET"]["NUM_CLASSES"] = len(self.classes)
        self.seed = max(config["SEED"], 0)
        self.folder = check_writable_folder(config["OUTPUT_DIR"])
        self.record = RunRecord(self.folder, self.classes, resume)
        atomic_write(self.folder / "config.yaml", dump_config(config).encode())

        torch.manual_seed(self.seed)
        self.model = build_model(config)
        state = _read_last(self.folder) if resume else None
        if eval_only and state is None and not model["WEIGHTS"]:
            raise ValueError(NOTHING_TO_EVALUATE)
        if state is None:
            load_weights(config, self.model, self.record, allow_partial)
        self.record.add(weights=model["WEIGHTS"])
        freeze(config, self.model)
        self.model.to(self.device)
        self.optimizer = build_optimizer(config, self.model)
        self.iteration, self._before = 0, 0.0
        if state is not None:
            self._restore(state)

    @property
    def seconds(self) -> float:
        """Of training and evaluation, those before an interruption included."""
        return self._before + time.perf_counter() - self._started

    def train(self) -> None:
        """All iterations that are left.

        Raises:
            ValueError: if the checkpoint is of more iterations than configured.
            FloatingPointError: if the training diverges.
            OSError: if a checkpoint cannot be written.
        """
        last = self.solver["MAX_ITER"]
        if self.iteration > last:
            raise ValueError(
                f"--resume: the checkpoint in {self.folder} has {self.iteration} iterations, more "
                f"than SOLVER.MAX_ITER {last}; --eval-only --resume evaluates it"
            )
        examples = Examples(
            trained_photographs(self.training_set.photographs, self.config),
            self.classes,
            self.config["INPUT"]["RANDOM_FLIP"] == "horizontal",
            self.seed,
            self.with_masks,
        )
        remaining = batches(examples, self.config, self.iteration, last)
        log = _Log(self.folder / "metrics.json", self.iteration)
        period = self.config["TEST"]["EVAL_PERIOD"]
        self.model.train()
        while self.iteration < last:
            rate = learning_rate(self.solver, self.iteration)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            losses = self._step(*next(remaining))
            log.add(self.iteration, losses, rate, self.iteration + 1 == last)
            self.iteration += 1
            if self.iteration == last:
                self._check_finite()
                if self.config["TEST"]["PRECISE_BN"]["ENABLED"]:
                    self._precise_batch_norm(examples)
                self._save("model_final.pth")
            elif self.iteration % self.solver["CHECKPOINT_PERIOD"] == 0:
                self._save(f"model_{self.iteration - 1:07d}.pth")
            if period and self.iteration % period == 0 and self.iteration < last:
                self.evaluate(is_final=False)
                self.model.train()

    def evaluate(self, is_final: bool = True) -> dict[str, Any]:
        """Average precision on the test set, written into the run's folder."""
        predictions = predict(self.model, self.test_set, self.device)
        facts = {
            "trainer": "torchvision",
            "detector": detector_of(self.config),
            "seed": self.seed,
            "iterations": self.iteration,
            "seconds": round(self.seconds, 1),
        }
        return write_result(
            self.folder,
            self.test_set,
            predictions,
            self.classes,
            {**self.record.facts, **facts},
            None if is_final else self.iteration,
        )

    def _step(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, float]:
        # Scales and sampled proposals are a function of the iteration, so that resuming repeats
        # them.
        name = f"step {self.seed} {self.iteration}"
        torch.manual_seed(random.Random(name).getrandbits(63))
        try:
            losses = self.model(*self._on_device(images, targets))
        # torchvision asserts on boxes that are NaN.
        except (AssertionError, RuntimeError):
            self._check_finite()
            raise
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            raise FloatingPointError(self._diverged(f"the loss is {total.item()}"))
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        values = {name: value.item() for name, value in losses.items()}
        return {"total_loss": sum(values.values()), **values}

    def _on_device(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Batch:
        return (
            [image.to(self.device) for image in images],
            [{key: value.to(self.device) for key, value in t.items()} for t in targets],
        )

    def _check_finite(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(self._diverged("weights are not finite"))

    def _diverged(self, what: str) -> str:
        return (
            f"training diverged: {what} at iteration {self.iteration}; lower SOLVER.BASE_LR or "
            f"raise SOLVER.WARMUP_ITERS"
        )

    @torch.no_grad()
    def _precise_batch_norm(self, examples: Examples) -> None:
        """Replace running averages by those over fresh batches under the final weights."""
        iterations = self.config["TEST"]["PRECISE_BN"]["NUM_ITER"]
        torch.manual_seed(self.seed)
        measured = (
            [self._on_device(*batch)] for batch in batches(examples, self.config, 0, iterations)
        )
        update_bn(measured, _OfBatches(self.model))

    def _save(self, name: str) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
        }
        atomic_write(self.folder / name, lambda file: torch.save(content, file))
        tag = self.folder / "last_checkpoint"
        atomic_write(tag, name.encode())
        # All earlier ones: a run that was killed between these lines left more than one.
        for earlier in self.folder.glob("model_*.pth"):
            if _PERIODIC.fullmatch(earlier.name) and earlier.name != name:
                earlier.unlink(missing_ok=True)

    def _restore(self, state: dict[str, Any]) -> None:
        name = self.folder / (self.folder / "last_checkpoint").read_text()
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.iteration, self._before = state["iteration"], state["seconds"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {name}: of another configuration than this run's"
            ) from error
        print(f"resuming from {name} after {self.iteration} iterations")


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, device: torch.device) -> list[Prediction]:
    """The detections in every photograph of a dataset, one at a time."""
    model.eval()
    predictions = []
    for photograph in dataset.photographs:
        (found,) = model([load_image(photograph).to(device)])
        known = found["labels"] > 0
        prediction = Prediction(
            photograph.image_id,
            found["boxes"][known].tolist(),
            found["scores"][known].tolist(),
            (found["labels"][known] - 1).tolist(),
        )
        if "masks" in found:
            shapes = (found["masks"][known, 0] > 0.5).cpu().numpy()
            masks = [encode_mask(mask) for mask in shapes]
            prediction = dataclasses.replace(prediction, masks=masks)
        predictions.append(prediction)
    return predictions


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over what is trained; norms have their own decay, layers their own rate."""
    solver, vit = config["SOLVER"], config["MODEL"]["VIT"]
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    of_norms = {p for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    blocks = vit["DEPTH"] if detector_of(config) == "ViT" else None
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = solver["WEIGHT_DECAY_NORM" if parameter in of_norms else "WEIGHT_DECAY"]
        factor = learning_rate_factor(name, solver["LAYER_DECAY"], blocks)
        groups.setdefault((0.0 if "pos_embed" in name else decay, factor), []).append(parameter)
    parameters = [
        {"params": params, "weight_decay": decay, "factor": factor}
        for (decay, factor), params in groups.items()
    ]
    if solver["OPTIMIZER"] == "AdamW":
        return torch.optim.AdamW(parameters, lr=solver["BASE_LR"])
    return torch.optim.SGD(parameters, lr=solver["BASE_LR"], momentum=solver["MOMENTUM"])


def learning_rate(solver: dict[str, Any], iteration: int) -> float:
    """Linear warm-up, then steps: detectron2's WarmupMultiStepLR."""
    rate = solver["BASE_LR"] * solver["GAMMA"] ** bisect_right(solver["STEPS"], iteration)
    if iteration < solver["WARMUP_ITERS"]:
        part = iteration / solver["WARMUP_ITERS"]
        rate *= solver["WARMUP_FACTOR"] * (1 - part) + part
    return float(rate)


class _OfBatches(nn.Module):
    """The detector as a function of one argument, a batch, as `update_bn` needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, batch: Batch) -> Any:
        return self.model(*batch)


def _read_last(folder: Path) -> dict[str, Any] | None:
    tag = folder / "last_checkpoint"
    return read_checkpoint(folder / tag.read_text()) if tag.is_file() else None


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
