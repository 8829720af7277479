"""The configurations: one base and overlays, no key ignored."""

import doctest
from pathlib import Path

import pytest
import torchvision
import yaml

import detection.compare
import detection.config
from detection.config import dump_config, load_config, read_values
from lightly_collapse.export import to_detectron2

FOLDER = Path(__file__).parents[2] / "configs" / "detection"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def test_examples():
    for module in (detection.config, detection.compare):
        assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_the_protocol_of_the_literature():
    values = dict(read_values(FOLDER / "voc_R50_C4_24k.yaml"))
    for key, value in {
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.STEPS": [18000, 22000],
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.WARMUP_ITERS": 100,
        "INPUT.MIN_SIZE_TRAIN": list(range(480, 801, 32)),
        "INPUT.MIN_SIZE_TEST": 800,
        "INPUT.FORMAT": "RGB",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "TEST.PRECISE_BN.ENABLED": True,
        "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
        "DATASETS.TEST": ["voc_2007_test"],
    }.items():
        assert values[key] == value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_detectron2_reads_them_all(path):
    config = pytest.importorskip("detectron2.config", reason="detectron2 is not installed")
    cfg = config.get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.INPUT.FORMAT == "RGB"


def test_torchvision_reads_what_it_can_build():
    for name in ("voc_R50_FPN", "small"):
        assert load_config(FOLDER / f"{name}.yaml")["MODEL"]["BACKBONE"]["FREEZE_AT"] == 0
    for name in ("voc_R50_C4_24k", "coco_R50_C4_2x"):
        with pytest.raises(ValueError, match=r"must be .* for torchvision.*train_net"):
            load_config(FOLDER / f"{name}.yaml")


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
