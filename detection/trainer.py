"""detectron2's trainer over the data that `detection.voc` has checked."""

import argparse
import json
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter

import detection.extra_norm  # noqa: F401  (registers the head that the C4 configurations name)
from detection.config import fragment_beside
from detection.datasets import read_datasets
from detection.results import Prediction, write_json, write_result
from detection.voc import VOC_DATASETS, Dataset
from lightly_collapse.export import read_detectron2
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.io.files import atomic_write

_OURS: dict[str, Dataset] = {}


def run(arguments: argparse.Namespace) -> None:
    """One process of a training or an evaluation.

    Args:
        arguments: detectron2's, and `dataset_root` and `classes`.

    Raises:
        ValueError: if data, weights or configuration are at fault.
        OSError: if a file cannot be read or written.
    """
    started = time.perf_counter()
    cfg = _setup(arguments)
    folder = Path(cfg.OUTPUT_DIR)
    if arguments.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
        loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
        Trainer.test(cfg, model)
        iterations = loaded.get("iteration", -1) + 1
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=arguments.resume)
        resumed_at = trainer.start_iter
        if resumed_at < trainer.max_iter:
            trainer.train()
        else:
            trainer.test(cfg, trainer.model)
        iterations = trainer.max_iter
    if comm.is_main_process():
        path = folder / "result.json"
        result = json.loads(path.read_text())
        result |= {"iterations": iterations, "is_final": True}
        # The time of the part before an interruption is not known.
        if arguments.eval_only or not resumed_at:
            result["seconds"] = round(time.perf_counter() - started, 1)
        write_json(path, result)
        scores = ", ".join(f"{name} {result[name]:.2f}" for name in ("AP", "AP50", "AP75"))
        print(f"{scores} on {result['dataset']}; wrote {path}")


class Checkpointer(DetectionCheckpointer):  # type: ignore[misc]
    """detectron2's, reading no code from a file and never leaving half a `last_checkpoint`."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a local file, or what detectron2 downloads."""
        if path and "://" not in path and not Path(path).is_file():
            raise ValueError(f"weights {path}: no such file")
        return dict(super().load(path, *args, **kwargs))

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return {"model": read_detectron2(filename), "matching_heuristics": True}
        return dict(super()._load_file(filename))

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that `--resume` starts from."""
        tag = Path(self.save_dir) / "last_checkpoint"
        atomic_write(tag, lambda file: file.write(last_filename_basename.encode()))


class Evaluator(PascalVOCDetectionEvaluator):  # type: ignore[misc]
    """The Pascal VOC evaluator, which also keeps the predictions for the result file.

    It reads annotations and predictions from text files, in which names must not hold spaces or
    slashes: images and classes go by number there.
    """

    def __init__(self, cfg: Any, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._cfg = cfg
        self._dataset = _OURS[dataset_name]
        self._names = tuple(cfg.DATASETS.CLASSES)
        self._class_names = [f"class{i}" for i in range(len(self._names))]

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._kept: list[Prediction] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in the detections of a batch."""
        super().process(inputs, outputs)
        for image, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            self._kept.append(
                Prediction(
                    self._dataset.photographs[int(image["image_id"])].image_id,
                    found.pred_boxes.tensor.tolist(),
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                )
            )

    def evaluate(self) -> dict[str, Any] | None:
        """The VOC numbers; those and the common ones go into result.json."""
        scores = super().evaluate()
        gathered = comm.gather(self._kept, dst=0)
        if not comm.is_main_process():
            return None
        voc: dict[str, Any] = {name: float(value) for name, value in scores["bbox"].items()}
        voc["metric"] = "VOC 2007, 11 points" if self._is_2007 else "VOC 2012, area"
        write_result(
            Path(self._cfg.OUTPUT_DIR),
            self._dataset,
            [prediction for part in gathered for prediction in part],
            self._names,
            {"trainer": "detectron2", "pascal_voc": voc, **_facts(self._cfg), "is_final": False},
        )
        return dict(scores)


class Trainer(DefaultTrainer):  # type: ignore[misc]
    """detectron2's default trainer with the checkpointer and evaluators above."""

    def build_hooks(self) -> list[Any]:
        """The default hooks, saving through our checkpointer."""
        self.checkpointer = Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return list(super().build_hooks())

    def build_writers(self) -> list[Any]:
        """The terminal and metrics.json; no TensorBoard, which need not be installed."""
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(str(Path(self.cfg.OUTPUT_DIR) / "metrics.json")),
        ]

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> Any:
        """Pascal VOC's evaluator for folders in its format, COCO's for COCO."""
        if dataset_name in _OURS:
            return Evaluator(cfg, dataset_name)
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)

    @classmethod
    def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> Any:
        """Evaluate; the result of a COCO data set is written here."""
        results = super().test(cfg, model, evaluators)
        if cfg.DATASETS.TEST[0] not in _OURS and comm.is_main_process():
            common = {"trainer": "detectron2", "dataset": cfg.DATASETS.TEST[0], **_facts(cfg)}
            write_json(Path(cfg.OUTPUT_DIR) / "result.json", {**results["bbox"], **common})
        return results


def _facts(cfg: Any) -> dict[str, Any]:
    return {"weights": cfg.MODEL.WEIGHTS, "seed": cfg.SEED, "iterations": None, "seconds": None}


def _setup(arguments: argparse.Namespace) -> Any:
    cfg = _configure(arguments)
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    # Anything else (COCO) is detectron2's own.
    is_voc = cfg.DATASETS.ROOT or names & set(VOC_DATASETS)
    if is_voc:
        training_set, test_set, classes = read_datasets(cfg.DATASETS, arguments.eval_only)
        cfg.DATASETS.CLASSES = list(classes)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
    cfg.freeze()
    default_setup(cfg, arguments)
    if is_voc:
        cfg.defrost()
        folder = Path(cfg.OUTPUT_DIR) / "ground_truth"
        cfg.DATASETS.TRAIN = (_register(training_set, "train", folder, classes),)
        cfg.DATASETS.TEST = (_register(test_set, "test", folder, classes),)
        cfg.freeze()
    return cfg


def _configure(arguments: argparse.Namespace) -> Any:
    cfg = get_cfg()
    cfg.DATASETS.ROOT = ""
    cfg.DATASETS.CLASSES = []
    try:
        cfg.merge_from_file(arguments.config_file)
        cfg.merge_from_list(arguments.opts)
        if fragment := fragment_beside(cfg.MODEL.WEIGHTS):
            # It came with the weights: read as plain values, whatever it asks for.
            content = cfg.load_yaml_with_base(str(fragment), allow_unsafe=False)
            cfg.merge_from_other_cfg(CfgNode(content))
            cfg.merge_from_list(arguments.opts)
            print(f"merged {fragment}")
    except (KeyError, AssertionError, yaml.YAMLError) as error:
        raise ValueError(f"config: {error}") from error
    if arguments.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE: no GPU here; give --num-gpus 0 or MODEL.DEVICE cpu")
    if arguments.dataset_root is not None:
        cfg.DATASETS.ROOT = str(arguments.dataset_root)
    if arguments.classes:
        cfg.DATASETS.CLASSES = list(arguments.classes)
    return cfg


def _register(dataset: Dataset, role: str, folder: Path, classes: Sequence[str]) -> str:
    """Make a dataset known to detectron2, with a clean copy of its boxes for the evaluator."""
    name = f"{dataset.name} ({role})"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _OURS[name] = dataset
    records = [
        {
            "file_name": str(photograph.path),
            "image_id": f"{i:06d}",
            "width": photograph.width,
            "height": photograph.height,
            "annotations": [
                {
                    "bbox": list(box.corners),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": classes.index(box.name),
                }
                for box in photograph.boxes
            ],
        }
        for i, photograph in enumerate(dataset.photographs)
    ]
    DatasetCatalog.register(name, lambda: records)
    if role == "test" and comm.is_main_process():
        _write_ground_truth(dataset, folder, classes)
    comm.synchronize()
    MetadataCatalog.get(name).set(
        thing_classes=list(classes),
        dirname=str(folder),
        split="test",
        year=2007 if dataset.name.startswith("voc_2007") else 2012,
    )
    return name


def _write_ground_truth(dataset: Dataset, folder: Path, classes: Sequence[str]) -> None:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for i, photograph in enumerate(dataset.photographs):
        objects = []
        for box in photograph.boxes:
            x0, y0, x1, y1 = box.corners
            edges = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            inner = "".join(f"<{name}>{round(value)}</{name}>" for name, value in edges.items())
            objects.append(
                f"<object><name>class{classes.index(box.name)}</name>"
                f"<pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>{int(box.is_difficult)}</difficult><bndbox>{inner}</bndbox></object>"
            )
        text = f"<annotation>{''.join(objects)}</annotation>\n"
        (folder / "Annotations" / f"{i:06d}.xml").write_text(text)
    names = "".join(f"{i:06d}\n" for i in range(len(dataset.photographs)))
    (folder / "ImageSets" / "Main" / "test.txt").write_text(names)
