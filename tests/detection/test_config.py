"""The configurations: one base and overlays, no key ignored."""

import doctest
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import detection.config
import detection.layer_decay
import detection.photographs
import detection.results
import detection.statistics
from detection.config import read_values
from detection.torchvision.config import dump_config, load_config
from detection.torchvision.model import build_model
from lightly_collapse.export import to_detectron2

FOLDER = Path(__file__).parents[2] / "configs" / "detection"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def test_examples():
    for module in (
        detection.config,
        detection.layer_decay,
        detection.results,
        detection.photographs,
        detection.statistics,
    ):
        assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


# facebookresearch/moco at 132aea9, folder detection/configs: all keys
# of pascal_voc_R_50_C4_24k_moco.yaml and coco_R_50_C4_2x_moco.yaml with those of their bases
# (pascal_voc_R_50_C4_24k.yaml, coco_R_50_C4_2x.yaml, Base-RCNN-C4-BN.yaml). MODEL.WEIGHTS is left
# out: its path is for the user to fill in.
MOCO_BASE = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "naiveSyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
    "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 800,
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
}
MOCO = {
    "voc_R50_C4_24k": {
        **MOCO_BASE,
        "MODEL.MASK_ON": False,
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
        "DATASETS.TEST": ["voc_2007_test"],
        "SOLVER.STEPS": [18000, 22000],
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.WARMUP_ITERS": 100,
    },
    "coco_R50_C4_2x": {
        **MOCO_BASE,
        "MODEL.MASK_ON": True,
        "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
        "DATASETS.TRAIN": ["coco_2017_train"],
        "DATASETS.TEST": ["coco_2017_val"],
        "SOLVER.STEPS": [120000, 160000],
        "SOLVER.MAX_ITER": 180000,
    },
}
# Values that are detectron2's own defaults, or that its loader would not tell apart.
DETECTRON2_DEFAULTS = {"VERSION": 2, "MODEL.RESNETS.DEPTH": 50}


@pytest.mark.parametrize("name", MOCO)
def test_the_protocol_of_the_literature(name):
    ours = dict(read_values(FOLDER / f"{name}.yaml"))
    assert ours == MOCO[name] | DETECTRON2_DEFAULTS


@pytest.mark.parametrize("name", MOCO)
def test_all_of_detectron2_s_keys_are_those_of_the_literature(name, tmp_path):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detection.detectron2.config import _merge_file, default_config  # noqa: PLC0415

    ours, theirs = default_config(), default_config()
    _merge_file(ours, str(FOLDER / f"{name}.yaml"))
    theirs.merge_from_list([part for pair in MOCO[name].items() for part in pair])
    assert ours == theirs
    # COCO's warm-up is detectron2's default.
    assert (100 if name.startswith("voc") else 1000) == ours.SOLVER.WARMUP_ITERS


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_detectron2_reads_them_all(path):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detection.detectron2.config import _merge_file, default_config  # noqa: PLC0415

    cfg = default_config()
    _merge_file(cfg, str(path))
    assert cfg.INPUT.FORMAT == "RGB"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_torchvision_builds_what_it_can(path):
    config = load_config(path)
    if path.stem == "coco_R50_C4_2x":
        with pytest.raises(ValueError, match=r"MASK_ON must be False .* detection\.train_net"):
            build_model(config)
        return
    with torch.device("meta"):
        detector = build_model(config)
    assert detector.sizes[False][1] == config["INPUT"]["MAX_SIZE_TEST"]


def test_what_wins(tmp_path):
    (tmp_path / "r50.yaml").write_text(
        "MODEL: {RESNETS: {DEPTH: 50, RES2_OUT_CHANNELS: 256}, PIXEL_MEAN: [1.5, 2.5, 3.5]}"
    )
    (tmp_path / "r50.pkl").write_bytes(b"")
    plain = load_config(FOLDER / "small.yaml")
    assert plain["MODEL"]["RESNETS"]["DEPTH"] == 18
    overrides = ["MODEL.WEIGHTS", str(tmp_path / "r50.pkl"), "SOLVER.STEPS", "(3, 4)"]
    merged = load_config(FOLDER / "small.yaml", overrides)
    assert merged["MODEL"]["RESNETS"]["DEPTH"] == 50
    assert merged["MODEL"]["PIXEL_MEAN"] == [1.5, 2.5, 3.5]
    assert merged["SOLVER"]["STEPS"] == [3, 4]
    last = load_config(FOLDER / "small.yaml", [*overrides, "MODEL.RESNETS.DEPTH", "34"])
    assert last["MODEL"]["RESNETS"]["DEPTH"] == 34
    (tmp_path / "again.yaml").write_text(dump_config(merged))
    assert load_config(tmp_path / "again.yaml") == merged


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("MODEL: {DEPHT: 50}", "does not know the key MODEL.DEPHT"),
        ("MODEL: {RESNETS: 50}", "does not know the key MODEL.RESNETS"),
        ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER must be int, got 'many'"),
        ("SOLVER: {MAX_ITER: true}", "SOLVER.MAX_ITER must be int"),
        ("INPUT: {FORMAT: BGR}", "INPUT.FORMAT must be 'RGB'"),
        ("INPUT: {RANDOM_FLIP: vertical}", "INPUT.RANDOM_FLIP must be horizontal or none"),
        ("[1, 2]", "must hold keys and values"),
        ("MODEL: {", "bad.yaml"),
        ("_BASE_: bad.yaml", "is its own _BASE_"),
        ("MODEL: {4: 5}", "keys must be words, got MODEL.4"),
        ("_BASE_: 3", "_BASE_ must be a path, got 3"),
        ("SOLVER: !!python/object/apply:os.system ['touch ran']", "bad.yaml"),
    ],
)
def test_bad_config(tmp_path, text, why):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        load_config(path)


def test_bad_overrides():
    with pytest.raises(ValueError, match="KEY VALUE pairs"):
        load_config(FOLDER / "small.yaml", ["SEED"])
    with pytest.raises(FileNotFoundError):
        load_config(FOLDER / "none.yaml")


def test_fragments_written_by_the_export_are_understood(tmp_path):
    to_detectron2(torchvision.models.resnext50_32x4d().state_dict(), tmp_path / "w.pkl")
    config = load_config(FOLDER / "voc_R50_FPN.yaml", ["MODEL.WEIGHTS", str(tmp_path / "w.pkl")])
    assert config["MODEL"]["RESNETS"]["NUM_GROUPS"] == 32
    assert config["MODEL"]["RESNETS"]["WIDTH_PER_GROUP"] == 4
    fragment = yaml.safe_load((tmp_path / "w.yaml").read_text())
    assert config["MODEL"]["PIXEL_STD"] == fragment["MODEL"]["PIXEL_STD"]
