"""Configurations: how files are merged over their bases; two steps of the shipped ones."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lightly_collapse.pretrain.checks import METHODS
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.configs import find_config, list_configs, load_config, split_config

FOLDER = Path(__file__).parents[2] / "configs/pretrain"
RECIPES = sorted(FOLDER.glob("*-*.yaml"))
# A regularizer's recipe is its baseline's with one mapping more; one of each is trained.
ENDINGS = ("-so", "-srip", "-ldreg", "-variance-covariance")
TRAINED = [
    path
    for path in RECIPES
    if path.stem.startswith("cifar10-")
    or (path.stem.startswith("imagenet1k") and not path.stem.endswith(ENDINGS))
    or path.stem in ("cifar100-wrn28-2-byol", "cifar100-vit-tiny-dino-so")
]
# Eight images are too few for the monitor's neighbours, which it says.
pytestmark = pytest.mark.filterwarnings("ignore:CollapseMonitor:UserWarning")
PARTS = {name: sorted((FOLDER / name).glob("*.yaml")) for name in ("method", "regularizer")}


def relative(path):
    return str(path.relative_to(FOLDER).with_suffix(""))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four generated training images in two classes, and as many held-out ones."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val", "test"):
        for i in range(4):
            folder = root / part / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root


def two_steps(config, images, output, *more):
    """Two steps of a configuration, shrunk where it only costs time: width, size and batch.

    The learning rate is that of a small batch: published ones, for 4,096 images a step, diverge.
    """
    settings = config["model"]["init_args"]
    words = ["--data", "SmallImageFolder", "--data.root", str(images), "--data.num_workers", "0"]
    if config.get("data", {}).get("class_path") == "ImageFolder":
        words[1] = "ImageFolder"
    words += ["--data.image_size", "32", "--data.batch_size", "2", "--data.bank_images", "4"]
    if settings.get("backbone", {}).get("name", "").startswith("vit"):
        words += ["--model.backbone.name", "vit_tiny", "--model.backbone.image_size", "32"]
        words += ["--model.backbone.patch_size", "8"]
    elif not settings.get("backbone", {}).get("name", "").startswith("wrn"):
        words += ["--model.backbone.width", "16"]
    if settings.get("ldreg"):
        words += ["--model.ldreg.k", "2", "--model.ldreg.from_epoch", "0"]
    method = config["model"]["class_path"]
    if method not in ("SimCLR", "DirectCLR", "MAE", "MoCo", "DCL") or settings.get("hidden_dim"):
        words += ["--model.hidden_dim", "64"]
    if method in ("SimSiam", "BarlowTwins", "VICReg", "FroSSL"):
        words += ["--model.output_dim", "64"]
    if method == "WMSE":
        words += ["--model.output_dim", "1", "--model.whitening_size", "2"]
    if method == "MAE":
        # One view: LDReg needs more images a step than with two.
        words += ["--model.decoder_layers", "1", "--data.batch_size", "4"]
    words += ["--model.optimizer.warmup_epochs", "0", "--trainer.max_epochs", "2"]
    words += ["--model.optimizer.learning_rate", "0.01"]
    words += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.logger"]
    words += ["false", "--trainer.enable_progress_bar", "false", "--output", str(output)]
    words += ["--trainer.enable_model_summary", "false", "--trainer.check_val_every_n_epoch", "1"]
    return pretrain([*words, *more])


@pytest.mark.parametrize("recipe", TRAINED, ids=relative)
def test_recipes_train(recipe, images, tmp_path):
    config = load_config(recipe)
    trainer = two_steps(config, images, tmp_path, "--config", str(recipe))
    assert trainer.global_step == 2
    method = trainer.lightning_module
    settings = config["model"]["init_args"]
    assert method.name == config["model"]["class_path"]
    assert (method.orthogonality is not None) == ("orthogonality" in settings)
    assert (method.ldreg is not None) == ("ldreg" in settings)
    assert (method.variance_covariance is not None) == ("variance_covariance" in settings)
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("part", PARTS["method"] + PARTS["regularizer"], ids=relative)
def test_every_method_and_every_regularizer_trains(part, images, tmp_path):
    base = FOLDER / "digits-resnet18-simclr.yaml"
    words = ["--config", str(base), "--config", str(part)]
    config, _ = split_config(words)
    if part.stem in ("mae", "ibot"):
        name = {"name": "vit_base", "image_size": 32, "patch_size": 4}
        config["model"]["init_args"]["backbone"] = name
    if config["model"]["class_path"] not in ("SimCLR",):
        config["model"]["init_args"].pop("temperature")
    trainer = two_steps(config, images, tmp_path, "--config", write(config, tmp_path))
    assert trainer.global_step == 2


def write(config, folder):
    path = folder / "in.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_every_method_has_a_file():
    assert {load_config(p)["model"]["class_path"] for p in PARTS["method"]} == set(METHODS)


def test_a_file_lies_over_its_bases_and_they_over_theirs(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/low.yaml").write_text("{a: {x: 1, y: 1, z: 1}, list: [1, 2]}")
    (tmp_path / "sub/mid.yaml").write_text("{bases: [low.yaml], a: {y: 2, z: 2}}")
    (tmp_path / "top.yaml").write_text("{bases: [sub/mid.yaml], a: {z: 3}, list: [3]}")
    assert load_config(tmp_path / "top.yaml") == {"a": {"x": 1, "y": 2, "z": 3}, "list": [3]}


def test_several_files_are_laid_over_one_another(tmp_path):
    (tmp_path / "a.yaml").write_text("{k: {x: 1, y: 1}}")
    (tmp_path / "b.yaml").write_text("{k: {y: 2}}")
    words = ["--m", "1", "--config", f"{tmp_path}/a.yaml", f"--config={tmp_path}/b.yaml", "--n"]
    assert split_config(words) == ({"k": {"x": 1, "y": 2}}, ["--m", "1", "--n"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bases: [self.yaml]", "among its own bases"),
        ("bases: self.yaml", "list of file names"),
        ("[1, 2]", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, text, said):
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        load_config(path)
    assert "self.yaml" in str(error.value)


def test_shipped_files_are_found_by_name_and_unknown_names_list_near_ones():
    for kind in ("pretrain", "sweep"):
        names = list_configs(kind)
        assert names
        for name in names:
            assert find_config(name, kind).is_file()
            assert find_config(f"{name}.yaml", kind) == find_config(name, kind)
    with pytest.raises(ValueError, match=r"byool.* near it are .*cifar100-resnet18-byol"):
        find_config("cifar100-resnet18-byool")


def test_the_names_are_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain(["--list-configs"])
    assert not stop.value.code
    assert capsys.readouterr().out.split() == list_configs("pretrain")


@pytest.mark.parametrize("overlay", sorted(FOLDER.glob("method/simclr-*.yaml")), ids=relative)
def test_a_projector_overlay_changes_the_projector_alone(overlay):
    base = load_config(FOLDER / "imagenet1k-resnet50-simclr.yaml")
    words = ["--config", "imagenet1k-resnet50-simclr", "--config", str(overlay)]
    config, _ = split_config(words)
    assert config["model"]["init_args"].pop("projector")
    assert config == base


def test_a_mapping_gives_the_run_of_its_words(tmp_path):
    config = load_config(find_config("digits-resnet18-simclr"))
    config["trainer"] = {
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 1},
    }
    config["model"]["init_args"]["optimizer"]["warmup_epochs"] = 0
    config["model"]["init_args"]["backbone"]["width"] = 4
    config["data"]["init_args"] |= {"train_images": 64, "batch_size": 32, "bank_images": 32}
    words = ["--config", write(config, tmp_path), "--output", str(tmp_path / "b")]
    a = pretrain({**config, "output": str(tmp_path / "a")})
    b = pretrain(words)
    # On a CPU this backbone is too narrow for its channels to be last.
    assert config["model"]["init_args"]["channels_last"]
    assert not a.lightning_module.channels_last
    assert a.lightning_module.backbone.conv1.weight.is_contiguous()
    for x, y in zip(a.lightning_module.parameters(), b.lightning_module.parameters(), strict=True):
        assert torch.equal(x, y)


def test_the_wheel_holds_every_recipe():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(FOLDER.parents[1]))
    forced = builder.recurse_forced_files(builder.config.get_force_include())
    held = {file.distribution_path for file in forced}
    for kind in ("pretrain", "sweep"):
        for name in list_configs(kind):
            assert f"lightly_collapse/configs/{kind}/{name}.yaml" in held
