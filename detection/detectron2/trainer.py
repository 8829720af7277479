"""detectron2's trainer over the data that this project has checked."""

import argparse
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import inference_on_dataset
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter

# Registering the head and the backbone that configurations name.
import detection.detectron2.roi_heads
import detection.detectron2.vit  # noqa: F401
from detection.config import DETECTOR_OF
from detection.datasets import read_datasets
from detection.detectron2.checkpointer import Checkpointer
from detection.detectron2.config import configure
from detection.detectron2.data import Mapper, register
from detection.detectron2.evaluator import Evaluator
from detection.layer_decay import learning_rate_factor
from detection.photographs import Dataset
from detection.results import NOTHING_TO_EVALUATE, RunRecord, describe_scores, write_result
from lightly_collapse.io.files import check_writable_folder
from lightly_collapse.io.locks import hold_folder


def run(arguments: argparse.Namespace) -> None:
    """One process of a training or an evaluation.

    Args:
        arguments: detectron2's, and `dataset_root`, `classes` and `allow_partial`.

    Raises:
        ValueError: if data, weights or configuration are at fault.
        FloatingPointError: if the training diverges.
        OSError: if a file cannot be read or written.
    """
    started = time.perf_counter()
    cfg = configure(arguments)
    folder = check_writable_folder(cfg.OUTPUT_DIR)
    # One process of a run holds it for all of them.
    with hold_folder(folder) if comm.is_main_process() else nullcontext():
        _train_and_evaluate(cfg, arguments, folder, started)


def _train_and_evaluate(
    cfg: Any, arguments: argparse.Namespace, folder: Path, started: float
) -> None:
    training_set, test_set, classes = read_datasets(
        cfg.DATASETS, arguments.eval_only, cfg.MODEL.MASK_ON
    )
    cfg.DATASETS.CLASSES = list(classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(classes)
    if training_set.has_run_lengths:
        # detectron2 trains on polygons or on bitmaps, not on both.
        cfg.INPUT.MASK_FORMAT = "bitmask"
    record = RunRecord(folder, classes, arguments.resume)
    is_resumed = arguments.resume and (folder / "last_checkpoint").is_file()
    if arguments.eval_only and not is_resumed and not cfg.MODEL.WEIGHTS:
        raise ValueError(NOTHING_TO_EVALUATE)
    default_setup(cfg, arguments)
    # After config.yaml was written, which keeps the names that were asked for.
    cfg.DATASETS.TRAIN = (register(training_set, "train", classes),)
    cfg.DATASETS.TEST = (register(test_set, "test", classes),)
    cfg.freeze()
    try:
        trainer = Trainer(cfg, test_set, record, arguments)
    except (AssertionError, KeyError) as error:
        raise ValueError(f"config: detectron2 cannot build this detector: {error!r}") from error
    trainer.resume_or_load(resume=arguments.resume)
    if comm.is_main_process():
        record.add(weights=cfg.MODEL.WEIGHTS)
    first = trainer.start_iter
    if arguments.eval_only:
        iterations = first
    else:
        iterations = trainer.max_iter
        if first > iterations:
            raise ValueError(
                f"--resume: the checkpoint in {folder} has {first} iterations, more than "
                f"SOLVER.MAX_ITER {iterations}; --eval-only --resume evaluates it"
            )
        if first < iterations:
            trainer.train_until_done()
    # The time of the part before an interruption is not known.
    resumed = not arguments.eval_only and first > 0
    trainer.evaluate(iterations, None if resumed else started)


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """detectron2's default trainer with this project's data, checkpoints and evaluation.

    Args:
        cfg: of the run.
        test_set: what is tested on.
        record: of the run.
        arguments: of the command.
    """

    def __init__(
        self, cfg: Any, test_set: Dataset, record: RunRecord, arguments: argparse.Namespace
    ) -> None:
        self._test_set, self._record = test_set, record
        super().__init__(cfg)
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            record=record,
            allow_partial=arguments.allow_partial,
        )
        # The default hooks were built with detectron2's own checkpointer.
        self._hooks.clear()
        self.register_hooks(self.build_hooks())

    def train_until_done(self) -> None:
        """Train, telling a divergence from other errors.

        Raises:
            FloatingPointError: if the loss or a weight is not finite.
        """
        try:
            self.train()
        # detectron2 asserts on boxes and losses that are NaN.
        except (AssertionError, RuntimeError) as error:
            if all(parameter.isfinite().all() for parameter in self.model.parameters()):
                raise
            raise FloatingPointError(self._diverged()) from error
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._diverged()} ({error})") from error
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(self._diverged())

    def _diverged(self) -> str:
        return (
            f"training diverged at iteration {self.iter} (NaN or inf); lower SOLVER.BASE_LR or "
            f"raise SOLVER.WARMUP_ITERS"
        )

    def evaluate(self, iterations: int, started: float | None, is_final: bool = True) -> None:
        """Average precision on the test set; the main process writes it.

        Args:
            iterations: that were trained.
            started: when, by `time.perf_counter`; None where a part of the run is not known.
            is_final: otherwise the file's name has the number of iterations.
        """
        cfg = self.cfg
        classes = cfg.DATASETS.CLASSES
        (name,) = cfg.DATASETS.TEST
        truth = None if self._test_set.has_masks else Path(cfg.OUTPUT_DIR) / "ground_truth"
        evaluator = Evaluator(name, self._test_set, classes, truth)
        loader = build_detection_test_loader(cfg, name, mapper=Mapper(cfg, False))
        inference_on_dataset(self.model, loader, evaluator)
        if not comm.is_main_process():
            return
        seconds = None if started is None else round(time.perf_counter() - started, 1)
        facts = {
            "trainer": "detectron2",
            "detector": DETECTOR_OF.get(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.NAME),
            "seed": cfg.SEED,
            "iterations": iterations,
            "seconds": seconds,
        }
        if evaluator.pascal_voc is not None:
            facts["pascal_voc"] = evaluator.pascal_voc
        result = write_result(
            Path(cfg.OUTPUT_DIR),
            self._test_set,
            evaluator.predictions,
            classes,
            {**self._record.facts, **facts},
            None if is_final else iterations,
        )
        print(f"{describe_scores(result)} on {result['dataset']} after {iterations} iterations")

    def build_hooks(self) -> list[Any]:
        """The default hooks; evaluation during training writes files of its own."""
        from detectron2.engine.hooks import EvalHook  # noqa: PLC0415

        hooks = [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]
        if self.cfg.TEST.EVAL_PERIOD:
            evaluate = lambda: self.evaluate(self.iter + 1, None, is_final=False)  # noqa: E731
            hooks.insert(-1, EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate, False))
        return hooks

    def build_writers(self) -> list[Any]:
        """The terminal and metrics.json; no TensorBoard, which need not be installed."""
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(str(Path(self.cfg.OUTPUT_DIR) / "metrics.json")),
        ]

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        """detectron2's loader with our mapper."""
        return build_detection_train_loader(cfg, mapper=Mapper(cfg, True))

    @classmethod
    def build_optimizer(cls, cfg: Any, model: Any) -> Any:
        """SGD or AdamW, layers of the backbone with their own learning rate."""
        solver = cfg.SOLVER
        is_vit = cfg.MODEL.BACKBONE.NAME == "build_vit_pyramid_backbone"
        blocks = cfg.MODEL.VIT.DEPTH if is_vit else None
        parameters = get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: learning_rate_factor(name, solver.LAYER_DECAY, blocks),
            overrides={"pos_embed": {"weight_decay": 0.0}},
        )
        if solver.OPTIMIZER == "AdamW":
            return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
                parameters, lr=solver.BASE_LR
            )
        return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            parameters, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
