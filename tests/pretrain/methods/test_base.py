"""What is common to all methods, and what each must keep apart."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.loss import LDRegularizer
from lightly_collapse.pretrain.methods import (
    BYOL,
    DCL,
    DINO,
    IBOT,
    MAE,
    MMCR,
    NNBYOL,
    NNCLR,
    WMSE,
    BarlowTwins,
    DirectCLR,
    FroSSL,
    LeJEPA,
    MoCo,
    MoCoV3,
    SimCLR,
    SimSiam,
    SwAV,
    TiCo,
    VICReg,
)
from lightly_collapse.pretrain.methods.base import DivergedError
from lightly_collapse.pretrain.settings import (
    LDReg,
    OptimizerSettings,
    Orthogonality,
    VarianceCovariance,
)

RESNET = BackboneSettings("resnet18", stem="cifar", width=4)
MAKE = {
    "SimCLR": lambda: SimCLR(backbone=RESNET),
    "DirectCLR": lambda: DirectCLR(loss_dim=8, backbone=RESNET),
    "MoCo": lambda: MoCo(queue_size=32, backbone=RESNET),
    "BYOL": lambda: BYOL(hidden_dim=16, output_dim=8, backbone=RESNET),
    "SimSiam": lambda: SimSiam(hidden_dim=16, prediction_dim=8, output_dim=16, backbone=RESNET),
    "BarlowTwins": lambda: BarlowTwins(hidden_dim=16, output_dim=16, backbone=RESNET),
    "VICReg": lambda: VICReg(hidden_dim=16, output_dim=16, backbone=RESNET),
    "SwAV": lambda: SwAV(hidden_dim=16, output_dim=8, prototypes=12, backbone=RESNET),
    "DINO": lambda: DINO(hidden_dim=16, bottleneck_dim=8, output_dim=24, backbone=RESNET),
    "MoCoV3": lambda: MoCoV3(hidden_dim=16, output_dim=8, backbone=RESNET),
    "NNCLR": lambda: NNCLR(
        hidden_dim=16, output_dim=8, prediction_dim=16, queue_size=32, backbone=RESNET
    ),
    "NNBYOL": lambda: NNBYOL(queue_size=32, hidden_dim=16, output_dim=8, backbone=RESNET),
    "TiCo": lambda: TiCo(hidden_dim=16, output_dim=8, backbone=RESNET),
    "DCL": lambda: DCL(backbone=RESNET),
    "WMSE": lambda: WMSE(hidden_dim=16, output_dim=2, whitening_size=4, backbone=RESNET),
    "FroSSL": lambda: FroSSL(hidden_dim=16, output_dim=8, backbone=RESNET),
    "MMCR": lambda: MMCR(hidden_dim=16, output_dim=8, backbone=RESNET),
    "LeJEPA": lambda: LeJEPA(hidden_dim=16, output_dim=8, directions=16, backbone=RESNET),
    "IBOT": lambda: IBOT(
        hidden_dim=16,
        bottleneck_dim=8,
        output_dim=24,
        backbone=BackboneSettings("vit_tiny", image_size=16, patch_size=4),
    ),
    "MAE": lambda: MAE(
        decoder_layers=1,
        decoder_heads=2,
        decoder_dim=16,
        backbone=BackboneSettings("vit_tiny", image_size=16, patch_size=4),
    ),
}


@pytest.fixture(params=list(MAKE))
def method(request, monkeypatch):
    torch.manual_seed(0)
    method = MAKE[request.param]()
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: start)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    return method


def views(method, n=8):
    return [torch.rand(n, 3, 16, 16) for _ in range(method.global_views)]


def test_what_the_optimizer_trains_is_what_gets_a_gradient(method):
    step = method.step(views(method))
    assert step.loss.shape == ()
    step.loss.backward()
    optimizer = OptimizerSettings(weight_decay=0.1).build(method.trainable_modules(), None, 256)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    moved = {id(p) for p in method.parameters() if p.grad is not None}
    # DINO's frozen scale apart, every parameter that asks for a gradient is trained and gets one.
    asking = {id(p) for p in method.parameters() if p.requires_grad}
    assert moved == trained == asking


def test_weights_are_decayed_and_biases_and_norms_are_not(method):
    optimizer = OptimizerSettings(weight_decay=0.1).build(method.trainable_modules(), None, 256)
    decayed, undecayed = (set(map(id, g["params"])) for g in optimizer.param_groups)
    names = {id(p): name for name, p in method.named_parameters()}
    assert names_of(decayed, names)
    assert not [name for name in names_of(decayed, names) if name.endswith("bias")]
    assert not decayed & undecayed
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_all_parameters_are_decayed_where_that_is_asked_for(name):
    method = MAKE["SimCLR"]()
    settings = OptimizerSettings(name, 0.1, weight_decay=0.1, decay_biases=True)
    optimizer = settings.build(method.trainable_modules(), None, 256)
    decayed, undecayed = optimizer.param_groups
    trained = [p for module in method.trainable_modules() for p in module.parameters()]
    assert set(map(id, decayed["params"])) == set(map(id, trained))
    assert (decayed["weight_decay"], undecayed["params"]) == (0.1, [])
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    bias = method.backbone.bn1.weight
    before = bias.detach().clone()
    optimizer.step()
    # LARS leaves a weight without gradient as it is.
    moved = not torch.equal(bias, before)
    assert moved == (name != "lars")


def names_of(identities, names):
    return [names[i] for i in identities]


def test_features_are_what_the_backbone_gives_ldreg_can_act_on(method):
    step = method.step(views(method))
    for features in step.features:
        assert features.shape == (8, method.feature_dim)
        assert features.requires_grad
    penalty = LDRegularizer(1.0, k=4)(*step.features, reference=step.reference)
    penalty.backward()
    grads = [p.grad for p in method.backbone.parameters() if p.grad is not None]
    assert any(bool(g.any()) for g in grads)


def test_embedding_and_representation(method):
    method.eval()
    r = method(torch.rand(3, 3, 16, 16))
    assert r.shape == (3, method.feature_dim)
    assert method.embed(r).shape[0] == 3


def test_byol_gives_ldreg_the_momentum_encoders_features(monkeypatch):
    method = MAKE["BYOL"]()
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: start)
    step = method.step(views(method))
    assert step.reference.shape == (16, method.feature_dim)
    assert not step.reference.requires_grad


@pytest.mark.parametrize("name", ["BYOL", "MoCo", "MoCoV3", "TiCo", "MMCR", "DINO"])
def test_momentum_encoders_follow_at_their_pace(name, monkeypatch):
    method = MAKE[name]()
    monkeypatch.setattr(method, "momentum", lambda *_: 0.75)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    slow = method.teacher_backbone if name == "DINO" else method.momentum_backbone
    fast, before = method.backbone.conv1.weight, slow.conv1.weight.clone()
    with torch.no_grad():
        fast.add_(1.0)
    method.step(views(method))
    torch.testing.assert_close(slow.conv1.weight, 0.75 * before + 0.25 * fast.detach())


def test_the_moco_queue_is_in_the_checkpoint(monkeypatch):
    method, other = MAKE["MoCo"](), MAKE["MoCo"]()
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: start)
    method.step(views(method))
    checkpoint = {}
    method.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert torch.equal(other.criterion.memory_bank.bank, method.criterion.memory_bank.bank)
    assert int(other.criterion.memory_bank.bank_ptr) == 8


def test_mae_predicts_the_hidden_patches_of_a_constant_image():
    method = MAE(
        normalize_patches=False,
        decoder_layers=1,
        decoder_heads=2,
        decoder_dim=16,
        backbone=BackboneSettings("vit_tiny", image_size=16, patch_size=4),
    )
    torch.nn.init.zeros_(method.decoder.prediction_head.weight)
    torch.nn.init.constant_(method.decoder.prediction_head.bias, 0.25)
    loss = method.step([torch.full((2, 3, 16, 16), 0.75)]).loss
    assert float(loss) == pytest.approx(0.25)  # (0.75 - 0.25)^2


@pytest.mark.parametrize(
    ("projector", "width"),
    [
        ("mlp", 32),
        ("none", 32),
        ("linear", 32),
        ("orthogonal", 32),
        ("diagonal", 32),
        ("low_rank", 5),
        ("low_rank_diagonal", 5),
    ],
)
def test_projector_kinds(projector, width):
    method = SimCLR(projector=projector, backbone=RESNET)
    assert method.embed(torch.rand(4, 32)).shape == (4, width)


def test_swav_and_dino_take_small_views(monkeypatch):
    for name in ("SwAV", "DINO"):
        method = MAKE[name]()
        monkeypatch.setattr(method, "momentum", lambda start, end=1.0: start)
        monkeypatch.setattr(type(method), "current_epoch", 5)
        more = [*views(method), torch.rand(8, 3, 8, 8)]
        torch.manual_seed(1)
        with_small = method.step(more).loss
        torch.manual_seed(1)
        assert method.step(more[:2]).loss != with_small


def test_regularizers_and_their_settings_reach_the_modules():
    method = SimCLR(
        backbone=RESNET,
        orthogonality=Orthogonality("srip", 0.5, include=["layer4"]),
        ldreg=LDReg(0.2, k=8, norm="l2"),
    )
    assert (method.orthogonality.kind, method.orthogonality.weight) == ("srip", 0.5)
    assert all("layer4" in name for name in method.orthogonality.residuals())
    assert (method.ldreg.weight, method.ldreg.k, method.ldreg.norm) == (0.2, 8, "l2")


@pytest.mark.parametrize(
    ("settings", "batch", "rate"),
    [
        ({"scaling": "none"}, 1024, 0.1),
        ({"scaling": "linear"}, 1024, 0.4),
        ({"scaling": "sqrt"}, 1024, 3.2),
    ],
)
def test_learning_rate_scaling(settings, batch, rate):
    optimizer = OptimizerSettings(learning_rate=0.1, **settings)
    assert optimizer.scaled_learning_rate(batch) == pytest.approx(rate)


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
def test_optimizer_settings_out_of_range_are_refused(name):
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"optimizer.{name}"):
            OptimizerSettings(**{name: value})


class HostReads(TorchDispatchMode):
    """Counts the operators that wait for the device to hand a value to Python."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["SimCLR", "BYOL", "VICReg", "MoCoV3", "SimSiam", "DINO"])
def test_a_training_step_reads_each_value_it_checks_in_one_transfer(name, monkeypatch):
    method = MAKE[name]()
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: start)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    monkeypatch.setattr(method, "log", lambda *_, **__: None)
    checks, transfers = [], []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (transfers.append(x), tolist(x))[1])
    batch = (views(method), torch.zeros(8, dtype=torch.long))
    with HostReads() as reads:
        method.training_step(batch, 0)
        checks.append(reads.count)
    # A read of one element is a transfer of its own; the check reads its vector in one.
    assert len(transfers) == 1
    assert checks == [0]


@pytest.mark.parametrize("poisoned", ["images", "weights", "loss"])
def test_what_diverged_is_named(poisoned, monkeypatch):
    method = MAKE["SimCLR"]()
    trainer = type("Trainer", (), {"checkpoint_callback": None, "global_step": 7})()
    monkeypatch.setattr(method, "_trainer", trainer)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    monkeypatch.setattr(type(method), "global_step", 7)
    monkeypatch.setattr(method, "log", lambda *_, **__: None)
    images = views(method)
    if poisoned == "images":
        images[1][0, 0, 0, 0] = torch.nan
    elif poisoned == "weights":
        method.backbone.conv1.weight.data[0, 0, 0, 0] = torch.inf
    else:
        del method.criterion
        method.criterion = lambda *z: z[0].sum() * torch.nan
    said = "the loss is nan" if poisoned == "loss" else "the representation holds NaN or inf"
    with pytest.raises(DivergedError, match=f"SimCLR: {said} at step 7 of epoch 5"):
        method.training_step((images, torch.zeros(8, dtype=torch.long)), 0)


def test_regularizers_are_built_from_their_settings():
    torch.manual_seed(0)
    method = SimCLR(
        backbone=RESNET,
        orthogonality=Orthogonality("shape", weight=0.5, initialize=True),
        ldreg=LDReg(weight=0.1, k=4, target_dimension=3.0),
        variance_covariance=VarianceCovariance(2.0, 0.5),
    )
    assert sum(method.orthogonality.residuals().values()) == pytest.approx(0, abs=1e-8)
    assert method.orthogonality.weight == 0.5
    assert (method.ldreg.target_dimension, method.ldreg.minimize) == (3.0, False)
    regularizer = method.variance_covariance
    assert (regularizer.variance_weight, regularizer.covariance_weight) == (2.0, 0.5)
    assert regularizer.gather_distributed
    minlid = SimCLR(backbone=RESNET, ldreg=LDReg(k=4, minimize=True)).ldreg
    x = torch.rand(16, method.feature_dim)
    torch.testing.assert_close(minlid(x), -SimCLR(backbone=RESNET, ldreg=LDReg(k=4)).ldreg(x))


def test_every_regularizer_adds_to_the_loss_and_is_logged(monkeypatch):
    method = SimCLR(backbone=RESNET, variance_covariance=VarianceCovariance(2.0, 0.5))
    logged = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: logged.update({name: value}))
    step = method.step(views(method))
    total = method._regularized(step)
    assert logged["variance_covariance"] > 0
    torch.testing.assert_close(total, step.loss + logged["variance_covariance"])


def test_biases_may_have_a_learning_rate_of_their_own():
    settings = OptimizerSettings(
        "lars", learning_rate=0.2, undecayed_learning_rate=0.0048, scaling="linear"
    )
    groups = settings.build([SimCLR(backbone=RESNET).backbone], None, 2048).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1.6, 0.0384])
    with pytest.raises(ValueError, match=r"undecayed_learning_rate must be .* got -1"):
        OptimizerSettings(undecayed_learning_rate=-1.0)


def test_ibot_starts_with_equal_networks_and_hides_patches_from_the_student_alone(monkeypatch):
    torch.manual_seed(0)
    method = MAKE["IBOT"]()
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: 1.0)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, method.teacher_backbone.state_dict()[name]), name
    images = torch.rand(8, 3, 16, 16)
    # Unmasked, the wrapped network is the backbone itself.
    tokens = method._masked[0].encode(images)
    torch.testing.assert_close(tokens[:, 0], method.backbone(images))
    method.step([images, images]).loss.backward()
    assert method.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.teacher_backbone.parameters())


@pytest.mark.parametrize("side", [4, 6, 9, 12])
def test_ibot_hides_patches_of_any_grid(side, monkeypatch):
    torch.manual_seed(0)
    vit = BackboneSettings("vit_tiny", image_size=2 * side, patch_size=2)
    method = IBOT(hidden_dim=16, bottleneck_dim=8, output_dim=24, backbone=vit)
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: 1.0)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    images = torch.rand(3, 3, 2 * side, 2 * side)
    assert method.step([images, images]).loss.isfinite()


def test_ibot_needs_a_vit_and_a_sound_weight():
    with pytest.raises(ValueError, match=r"IBOT needs a ViT .* got resnet18"):
        IBOT(output_dim=24, backbone=RESNET)
    vit = BackboneSettings("vit_tiny", image_size=16, patch_size=4)
    few = BackboneSettings("vit_tiny", image_size=16, patch_size=8)
    with pytest.raises(ValueError, match=r"at least 4 to a side.*patch_size 8 give 2"):
        IBOT(output_dim=24, backbone=few)
    with pytest.raises(ValueError, match=r"patch_weight must be .* got -1"):
        IBOT(patch_weight=-1, output_dim=24, backbone=vit)
