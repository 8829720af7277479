"""Recipes that carry a paper's name, value by value against where the value is published."""

from dataclasses import asdict

import pytest

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain.configs import find_config, list_configs, load_config
from lightly_collapse.pretrain.data.augment import ViewSettings
from lightly_collapse.pretrain.settings import OptimizerSettings

SOLO = "solo-learn, scripts/pretrain/"
LDREG = "LDReg code, configs/"
CIFAR_VIEWS = {
    "min_scale": 0.08,
    "gray": 0.2,
    "jitter": 1.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "blur": [0.0, 0.0],
    "solarize": [0.0, 0.2],
}
SIMCLR_VIEWS = {
    **{"min_scale": 0.08, "jitter": 1.0, "gray": 0.2},
    **{"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    **{"blur": [0.5, 0.5], "solarize": [0.0, 0.0]},
}
BYOL_VIEWS = {
    **{key: CIFAR_VIEWS[key] for key in ("brightness", "contrast", "saturation", "hue")},
    **{"min_scale": 0.08, "jitter": 1.0, "gray": 0.2},
    "blur": [1.0, 0.1],
    "solarize": [0.0, 0.2],
}
# MAE changes no colours: its jitter is zero.
EVERY_VIEW = {"flip": 0.5, "vertical_flip": 0.0, "jitter_probability": 0.8, "noise": 0.0}
MAE_VIEWS = {"min_scale": 0.2, "jitter": 0.0, "gray": 0.0, "blur": [0.0, 0.0]}
MOCO_VIEWS = {
    **{"min_scale": 0.2, "jitter": 1.0, "gray": 0.2},
    **{"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    **{"blur": [0.5, 0.5], "solarize": [0.0, 0.0]},
}


def optimizer(name, rate, scaling, decay, warmup, **more):
    published = {"momentum": 0.9, "min_lr_factor": 0.0, "decay_biases": False}
    published |= {"trust_coefficient": 1e-3, "clip_rate": False, "scaling": scaling or "none"}
    published |= {"name": name, "learning_rate": rate, "weight_decay": decay, **more}
    return {"optimizer": {**published, "warmup_epochs": warmup}}


CLIPPED = {"trust_coefficient": 0.02, "clip_rate": True}
DIRECTCLR = optimizer("lars", 4.8, None, 1e-6, 10, min_lr_factor=1e-3)

# solo-learn and MoCo take torchvision's ResNet as it is; LDReg, DirectCLR, VICReg and Barlow Twins
# start its residual branches at zero.
PLAIN = {"name": "resnet50", "stem": "imagenet", "zero_init_residual": False}
ZERO_INIT = {**PLAIN, "zero_init_residual": True}
CIFAR = {"name": "resnet18", "stem": "cifar", "width": 64, "zero_init_residual": False}
VIT = {"name": "vit_base", "image_size": 224, "patch_size": 16}
BACKBONES = {
    "cifar100-resnet18-byol": CIFAR,
    "cifar100-resnet18-simclr": CIFAR,
    "cifar100-resnet18-dino": CIFAR,
    "cifar100-vit-base-dino": {**VIT, "image_size": 32, "patch_size": 4},
    "imagenet100-resnet18-byol": {**PLAIN, "name": "resnet18"},
    "imagenet1k-resnet50-byol-b128": PLAIN,
    "imagenet1k-resnet50-moco": PLAIN,
    "imagenet1k-vit-base-simclr": VIT,
    "imagenet1k-vit-base-mae": VIT,
}

# Recipe: source, method, epochs, whole batch, views, arguments of the method.
PUBLISHED = {
    "cifar100-resnet18-byol": (
        f"{SOLO}cifar/byol.yaml, augmentations/asymmetric.yaml",
        *("BYOL", 1000, 256, CIFAR_VIEWS),
        {
            **{"hidden_dim": 4096, "output_dim": 256, "start_momentum": 0.99},
            **optimizer("lars", 1.0, "linear", 1e-5, 10, **CLIPPED),
        },
    ),
    "cifar100-resnet18-simclr": (
        f"{SOLO}cifar/simclr.yaml, augmentations/symmetric.yaml",
        *("SimCLR", 1000, 256, SIMCLR_VIEWS),
        {
            **{"hidden_dim": 2048, "output_dim": 256, "temperature": 0.2, "batch_norm": False},
            **optimizer("lars", 0.4, "linear", 1e-4, 10, **CLIPPED),
        },
    ),
    "cifar100-resnet18-dino": (
        f"{SOLO}cifar/dino.yaml",
        *("DINO", 1000, 256, CIFAR_VIEWS),
        {
            **{"hidden_dim": 2048, "bottleneck_dim": 256, "output_dim": 4096},
            **{"teacher_temperature": 0.07, "start_momentum": 0.9995},
            **optimizer("lars", 0.3, "linear", 1e-6, 10, **CLIPPED),
        },
    ),
    "imagenet100-resnet18-byol": (
        f"{SOLO}imagenet-100/byol.yaml: batch 128 on each of two devices",
        *("BYOL", 400, 256, BYOL_VIEWS),
        {
            **{"hidden_dim": 4096, "prediction_dim": 8192, "output_dim": 256},
            "start_momentum": 0.99,
            **optimizer("lars", 0.5, "linear", 1e-6, 10, **CLIPPED),
        },
    ),
    "imagenet1k-resnet50-byol-b128": (
        f"{SOLO}imagenet/byol.yaml; batch and epochs of the orthogonality paper",
        *("BYOL", 100, 128, BYOL_VIEWS),
        {
            **{"hidden_dim": 4096, "output_dim": 256, "start_momentum": 0.99},
            **optimizer("lars", 0.45, "linear", 1e-6, 10),
        },
    ),
    "imagenet1k-resnet50-byol": (
        f"LDReg, table 7; {LDREG}byol/in1k/rn50_bs2048_e100",
        *("BYOL", 100, 2048, BYOL_VIEWS),
        {
            **{"hidden_dim": 4096, "output_dim": 256, "start_momentum": 0.99},
            **optimizer("lars", 0.4, "linear", 1.5e-6, 10),
        },
    ),
    "imagenet1k-resnet50-simclr": (
        f"{LDREG}simclr/in1k/rn50_bs2048_e100",
        *("SimCLR", 100, 2048, SIMCLR_VIEWS),
        {"temperature": 0.1, **optimizer("lars", 0.075, "sqrt", 1e-6, 10)},
    ),
    "imagenet1k-resnet50-simclr-tuned": (
        f"{LDREG}simclr_tuned/in1k/rn50_bs2048_e100; models/resnet.py, ResNetSimCLRTuned",
        *("SimCLR", 100, 2048, BYOL_VIEWS),
        {
            **{"temperature": 0.15, "hidden_dim": 8192, "output_dim": 512, "num_layers": 3},
            **optimizer("lars", 0.5, "linear", 1e-6, 10),
        },
    ),
    "imagenet1k-vit-base-simclr": (
        f"{LDREG}simclr/in1k/vit_base_bs2048_e200; models/vit.py",
        *("SimCLR", 200, 2048, BYOL_VIEWS),
        {
            **{"temperature": 0.2, "hidden_dim": 4096, "output_dim": 256, "num_layers": 3},
            **optimizer("adamw", 1.5e-4, "linear", 0.1, 20, betas=[0.9, 0.999], decay_biases=True),
        },
    ),
    "imagenet1k-resnet50-moco-v3": (
        f"{LDREG}moco/in1k/rn50_bs2048_e100",
        *("MoCoV3", 100, 2048, BYOL_VIEWS),
        {
            **{"temperature": 1.0, "output_dim": 256, "start_momentum": 0.99},
            **optimizer("lars", 0.6, "linear", 1e-6, 10),
        },
    ),
    "imagenet1k-resnet50-vicreg": (
        "vicreg code, main_vicreg.py, augmentations.py, README.md (0.3 for 100 epochs)",
        *("VICReg", 100, 2048, BYOL_VIEWS),
        {
            **{"hidden_dim": 8192, "output_dim": 8192},
            **{"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
            **optimizer("lars", 0.3, "linear", 1e-6, 10, min_lr_factor=1e-3),
        },
    ),
    "imagenet1k-resnet50-barlow-twins": (
        "barlowtwins code, main.py; epochs as LDReg's runs",
        *("BarlowTwins", 100, 2048, BYOL_VIEWS),
        {
            **{"hidden_dim": 8192, "output_dim": 8192, "redundancy": 0.0051},
            **optimizer(
                *("lars", 0.2, "linear", 1e-6, 10),
                undecayed_learning_rate=0.0048,
                min_lr_factor=1e-3,
            ),
        },
    ),
    "imagenet1k-resnet50-moco": (
        "moco code, main_moco.py and README.md, options of v2",
        *("MoCo", 200, 256, MOCO_VIEWS),
        {
            **{"temperature": 0.2, "queue_size": 65536},
            **{"start_momentum": 0.999, "end_momentum": 0.999},
            **optimizer("sgd", 0.03, "linear", 1e-4, 0, decay_biases=True),
        },
    ),
    "cifar100-vit-base-dino": (
        f"{SOLO}cifar/dino.yaml (head, momentum, warm-up); DINO, section 3 (AdamW)",
        *("DINO", 1000, 256, CIFAR_VIEWS),
        {
            **{"hidden_dim": 2048, "bottleneck_dim": 256, "output_dim": 4096},
            **{"teacher_temperature": 0.07, "start_momentum": 0.9995},
            **optimizer("adamw", 5e-4, "linear", 0.04, 10, betas=[0.9, 0.999]),
        },
    ),
    "imagenet1k-vit-base-mae": (
        f"{LDREG}mae/in1k/vit_base_bs2048_e200",
        *("MAE", 200, 2048, MAE_VIEWS),
        {
            "normalize_patches": True,
            **optimizer("adamw", 1.5e-4, "linear", 0.05, 40, betas=[0.9, 0.95], decay_biases=True),
        },
    ),
    "imagenet1k-resnet50-directclr": (
        "directclr code, directclr/main.py and utils.py",
        *("DirectCLR", 100, 4096, BYOL_VIEWS),
        {"loss_dim": 360, "temperature": 0.1, **DIRECTCLR},
    ),
    **{
        f"imagenet1k-resnet50-directclr-simclr-{projector}": (
            f"directclr code, directclr/main.py, mode {mode}",
            *("SimCLR", 100, 4096, BYOL_VIEWS),
            {"projector": projector, "negatives": "other_view", "temperature": 0.1, **DIRECTCLR}
            | sizes,
        )
        for projector, mode, sizes in (
            ("mlp", "simclr", {"hidden_dim": 2048, "output_dim": 128}),
            ("linear", "single", {"output_dim": 128}),
            ("none", "baseline", {}),
        )
    },
}

# Recipe: weight, neighbours, first epoch.
LDREG_WEIGHTS = {
    "imagenet1k-resnet50-simclr-ldreg": 0.01,
    "imagenet1k-resnet50-simclr-tuned-ldreg": 0.01,
    "imagenet1k-resnet50-byol-ldreg": 0.005,
    "imagenet1k-resnet50-moco-v3-ldreg": 0.005,
    "imagenet1k-vit-base-simclr-ldreg": 0.001,
    "imagenet1k-vit-base-mae-ldreg": 5e-6,
    "imagenet1k-resnet50-vicreg-ldreg": 0.025,
    "imagenet1k-resnet50-barlow-twins-ldreg": 1.0,
}

# The orthogonality paper tunes gamma on a validation set among these; which one a row of its
# tables has is not published.
GAMMA = {"so": (1e-5, 1e-6, 1e-7), "srip": (1e-3, 1e-4, 1e-5)}

# Recipe: kind, weight, split_qkv. Which of the weights of `GAMMA` is recalled.
ORTHOGONALITY = {
    "cifar100-resnet18-byol-srip": ("srip", 1e-3, False),
    "imagenet100-resnet18-byol-srip": ("srip", 1e-3, False),
    "cifar100-wrn28-2-byol-srip": ("srip", 1e-4, False),
    "cifar100-vit-tiny-dino-so": ("so", 1e-5, True),
    "cifar100-vit-small-dino-so": ("so", 1e-5, True),
}


def is_within(expected, found):
    """Every published value is that of the run; what the run has besides is its own."""
    for key, value in expected.items():
        assert key in found, key
        if isinstance(value, dict):
            is_within(value, found[key])
        else:
            plain = list(found[key]) if isinstance(found[key], tuple) else found[key]
            assert plain == value, (key, plain, value)


def resolved(settings, kind):
    """A part of a configuration with the defaults of what it does not say."""
    lists = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    return asdict(kind(**lists))


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name):
    _, method, epochs, batch, views, arguments = PUBLISHED[name]
    config = load_config(find_config(name))
    assert config["model"]["class_path"] == method
    assert config["trainer"]["max_epochs"] == epochs
    assert config["data"]["init_args"]["batch_size"] == batch
    is_within(
        EVERY_VIEW | views, resolved(config["data"]["init_args"].get("views", {}), ViewSettings)
    )
    found = config["model"]["init_args"]
    found["optimizer"] = resolved(found["optimizer"], OptimizerSettings)
    is_within(arguments, found)
    backbone = resolved(found["backbone"], BackboneSettings)
    is_within(BACKBONES.get(name, ZERO_INIT), backbone)


@pytest.mark.parametrize("name", LDREG_WEIGHTS)
def test_ldreg_weights_are_the_published_ones(name):
    config = load_config(find_config(name))["model"]["init_args"]
    assert config["ldreg"] == {"weight": LDREG_WEIGHTS[name], "k": 64, "from_epoch": 10}
    # Nothing else differs from the baseline.
    baseline = load_config(find_config(name.removesuffix("-ldreg")))["model"]["init_args"]
    assert {key: value for key, value in config.items() if key != "ldreg"} == baseline


@pytest.mark.parametrize("name", ORTHOGONALITY)
def test_orthogonality_weights(name):
    settings = load_config(find_config(name))["model"]["init_args"]["orthogonality"]
    kind, weight, split = ORTHOGONALITY[name]
    assert (settings["kind"], settings["weight"]) == (kind, weight)
    assert settings.get("split_qkv", False) == split


@pytest.mark.parametrize(
    "name", [n for n in list_configs("pretrain") if n.endswith(("-so", "-srip"))]
)
def test_every_gamma_is_one_of_the_published(name):
    if name.startswith(("photographs", "cifar10-")):
        pytest.skip("no experiment of the paper")
    settings = load_config(find_config(name))["model"]["init_args"]["orthogonality"]
    assert settings["weight"] in GAMMA[settings["kind"]]
