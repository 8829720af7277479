"""Every detector is trained with both trainers on a few images until its loss falls."""

import importlib.util
import json

import pytest
import timm
import torch
import torchvision

from detection import train_net, train_torchvision
from detection.config import read_values
from detection.layer_decay import learning_rate_factor
from lightly_collapse.export import to_detectron2
from tests.detection.conftest import TINY

pytest.importorskip("pycocotools", reason="average precision is counted with pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore")
TRAINERS = {"torchvision": train_torchvision.main, "detectron2": train_net.main}
SIZES = (*TINY, "SOLVER.CHECKPOINT_PERIOD", "100", "TEST.PRECISE_BN.ENABLED", "False")
SGD = ("SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "5", "SOLVER.STEPS", "(1000,)")
RESNET18 = ("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64")
FROZEN = ("MODEL.BACKBONE.FREEZE_AT", "5", "MODEL.RESNETS.NORM", "FrozenBN")
ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", "[[12], [24], [48], [96], [192]]")
MASK = [
    *(*SGD, *RESNET18, *ANCHORS, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('test',)"),
    *("INPUT.MAX_SIZE_TRAIN", "320", "DATALOADER.NUM_WORKERS", "0"),
]
ADAM = ("SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "5", "SOLVER.STEPS", "(1000,)")
CASES = {
    "FPN": ("small", 40, SGD),
    "RetinaNet": ("small_RetinaNet", 120, SGD),
    "ViT": ("small_ViT", 100, ADAM),
    "mask": ("coco_R50_FPN_mask_1x", 40, MASK),
    "C4": ("small_C4", 40, (*SGD, *RESNET18)),
}


@pytest.fixture(params=TRAINERS)
def trainer(request, monkeypatch):
    if request.param == "detectron2" and importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed")
    monkeypatch.chdir(request.config.rootpath)
    return request.param


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    to_detectron2(torchvision.models.resnet18(), folder / "r18.pkl")
    to_detectron2(torchvision.models.resnet50(), folder / "r50.pkl")
    vit = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=96, depth=4, num_heads=3, num_classes=0
    )
    to_detectron2(vit, folder / "vit.pkl")
    return folder


def train(trainer, config, root, weights, output, iterations, *options):
    words = ["--config-file", f"configs/detection/{config}.yaml", "--num-gpus", "0"]
    words += ["--dataset-root", str(root), *SIZES, "MODEL.WEIGHTS", str(weights)]
    words += ["OUTPUT_DIR", str(output), *options, "SOLVER.MAX_ITER", str(iterations)]
    assert TRAINERS[trainer](words) == 0
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    return json.loads((output / "result.json").read_text()), losses


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.slow) for k in ("FPN", "RetinaNet")), "ViT", "mask"],
)
def test_the_loss_falls(trainer, kind, digits_root, coco_root, exported, tmp_path):
    config, iterations, options = CASES[kind]
    root = coco_root if kind == "mask" else digits_root
    weights = exported / ("vit.pkl" if kind == "ViT" else "r18.pkl")
    result, losses = train(trainer, config, root, weights, tmp_path, iterations, *options)
    # detectron2 divides RetinaNet's loss by a running number of anchors that starts at 100, which
    # makes the losses of the first 40 iterations small.
    first = losses[2] if (trainer, kind) == ("detectron2", "RetinaNet") else losses[0]
    assert losses[-1] < 0.95 * first
    assert result["detector"] == ("FPN" if kind == "mask" else kind)
    assert result["backbone_tensors"][0] == result["backbone_tensors"][1] > 0
    assert 0 <= result["AP50"] <= 100
    assert ("masks" in result) == (kind == "mask")
    if kind == "mask":
        assert 0 <= result["masks"]["AP50"] <= 100


@pytest.mark.slow
def test_the_published_head_with_torchvision(digits_root, exported, tmp_path):
    config, iterations, options = CASES["C4"]
    result, losses = train(
        "torchvision", config, digits_root, exported / "r18.pkl", tmp_path, iterations, *options
    )
    assert losses[1] < 0.9 * losses[0]
    assert (result["detector"], result["backbone_tensors"]) == ("C4", [100, 100])
    state = torch.load(tmp_path / "model_final.pth")["model"]
    assert state["roi_heads.box_head.norm.weight"].shape == (512,)


@pytest.mark.slow
def test_the_published_detector_with_a_resnet50(trainer, digits_root, exported, tmp_path, request):
    # From random weights and with two images a step 0.02 is too high a rate for so deep a network.
    options = (*SGD, "SOLVER.BASE_LR", "0.005", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20")
    result, losses = train(
        trainer, "small_C4", digits_root, exported / "r50.pkl", tmp_path, 80, *options
    )
    assert losses[-1] < 0.9 * losses[0]
    assert (result["detector"], result["backbone_tensors"]) == ("C4", [265, 265])


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_frozen_backbone_stays_as_it_was_exported(trainer, kind, digits_root, exported, tmp_path):
    vit = kind == "vit"
    config, options = ("small_ViT", ()) if vit else ("small", FROZEN)
    options = (*options, "MODEL.BACKBONE.FREEZE_AT", "5")
    name = "vit.pkl" if vit else "r18.pkl"
    train(trainer, config, digits_root, exported / name, tmp_path, 3, *options)
    state = torch.load(tmp_path / "model_final.pth")["model"]
    if vit:
        from lightly_collapse.export import read_detectron2  # noqa: PLC0415

        for name, array in read_detectron2(exported / "vit.pkl").items():
            assert torch.equal(state[name], torch.from_numpy(array)), name
        return
    plain = torchvision_names(exported / "r18.pkl")
    prefix = "backbone.body." if trainer == "torchvision" else "backbone.bottom_up."
    given = {n: t for n, t in state.items() if n.startswith(prefix) and "num_batches" not in n}
    assert len(given) == 100
    wanted = plain if trainer == "torchvision" else detectron2_names(exported / "r18.pkl")
    for name, tensor in given.items():
        assert torch.equal(tensor, wanted[name.removeprefix(prefix)]), name


def detectron2_names(path):
    from lightly_collapse.export import read_detectron2  # noqa: PLC0415

    return {name: torch.from_numpy(array) for name, array in read_detectron2(path).items()}


def torchvision_names(path):
    from lightly_collapse.export import read_detectron2, torchvision_state_dict  # noqa: PLC0415

    return torchvision_state_dict(read_detectron2(path))


@pytest.mark.parametrize("kind", ["small", "small_ViT"])
def test_layer_wise_learning_rates_reach_the_optimizer(trainer, kind):
    decay = 0.5
    blocks = 4 if kind == "small_ViT" else None
    if trainer == "torchvision":
        from detection.torchvision.config import load_config  # noqa: PLC0415
        from detection.torchvision.model import build_model  # noqa: PLC0415
        from detection.torchvision.trainer import build_optimizer  # noqa: PLC0415

        words = ["MODEL.DEVICE", "cpu", "SOLVER.LAYER_DECAY", str(decay)]
        config = load_config(f"configs/detection/{kind}.yaml", words)
        model = build_model(config)
        optimizer = build_optimizer(config, model)
        rates = {p: group["factor"] for group in optimizer.param_groups for p in group["params"]}
        stem = "backbone.body.conv1.weight"
    else:
        from detectron2.modeling import build_model as build  # noqa: PLC0415

        from detection.detectron2.config import _merge_file, default_config  # noqa: PLC0415
        from detection.detectron2.trainer import Trainer  # noqa: PLC0415

        cfg = default_config()
        _merge_file(cfg, f"configs/detection/{kind}.yaml")
        cfg.MODEL.DEVICE, cfg.SOLVER.LAYER_DECAY = "cpu", decay
        model = build(cfg)
        groups = Trainer.build_optimizer(cfg, model).param_groups
        base = cfg.SOLVER.BASE_LR
        rates = {p: group["lr"] / base for group in groups for p in group["params"]}
        stem = "backbone.bottom_up.stem.conv1.weight"
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        assert rates[parameter] == pytest.approx(learning_rate_factor(name, decay, blocks)), name
    if blocks:
        assert rates[named["backbone.net.patch_embed.proj.weight"]] == pytest.approx(decay**5)
        assert rates[named["backbone.net.pos_embed"]] == pytest.approx(decay**5)
        assert rates[named["backbone.net.blocks.3.norm1.weight"]] == pytest.approx(decay)
    else:
        assert rates[named[stem]] == pytest.approx(decay**5)


def test_sizes_of_the_literature_are_kept():
    # ViTDet's layer decay and stochastic depth for ViT-B (Li et al., 2022, appendix).
    values = dict(read_values("configs/detection/coco_ViT_B_mask_1x.yaml"))
    assert values["SOLVER.LAYER_DECAY"] == 0.7
    assert values["MODEL.VIT.DROP_PATH"] == 0.1
    assert values["SOLVER.WEIGHT_DECAY"] == 0.1
    assert values["SOLVER.BASE_LR"] == 1e-4
