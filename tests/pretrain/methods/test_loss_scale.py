"""The scale of every loss: our step against the formula that Lightly's benchmark trains with."""

import pytest
import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DCLLoss,
    DINOLoss,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain import methods

RESNET = BackboneSettings("resnet18", stem="cifar", width=4)


def make(name, monkeypatch, **settings):
    torch.manual_seed(0)
    method = getattr(methods, name)(backbone=RESNET, **settings)
    monkeypatch.setattr(method, "momentum", lambda start, end=1.0: 1.0)
    monkeypatch.setattr(type(method), "current_epoch", 5)
    return method, [torch.rand(8, 3, 16, 16) for _ in range(2)]


def embeddings(method, views):
    return [method.embed(method.encode(view)) for view in views]


@torch.no_grad()
def targets(method, views):
    return [method.momentum_head(method.momentum_backbone(view)) for view in views]


@pytest.mark.parametrize(
    ("name", "criterion", "settings"),
    [
        ("SimCLR", NTXentLoss(0.1), {}),
        ("DCL", DCLLoss(0.1), {}),
        ("VICReg", VICRegLoss(), {"hidden_dim": 16, "output_dim": 16}),
        ("BarlowTwins", BarlowTwinsLoss(), {"hidden_dim": 16, "output_dim": 16}),
    ],
)
def test_losses_of_two_embeddings(name, criterion, settings, monkeypatch):
    method, views = make(name, monkeypatch, **settings)
    expected = criterion(*embeddings(method, views))
    torch.testing.assert_close(method.step(views).loss, expected)


def test_byol_is_the_sum_over_both_directions_of_2_minus_2_cos(monkeypatch):
    method, views = make("BYOL", monkeypatch, hidden_dim=16, output_dim=8)
    p0, p1 = (method.predictor(z) for z in embeddings(method, views))
    z0, z1 = targets(method, views)
    # benchmarks/imagenet/resnet50/byol.py: 2 * criterion each way, without the constant 4.
    expected = 4 - 2 * cosine_similarity(p0, z1).mean() - 2 * cosine_similarity(p1, z0).mean()
    loss = method.step(views).loss
    torch.testing.assert_close(loss, expected)
    # The same by distances of unit vectors, as the paper has it.
    distances = [
        (normalize(p) - normalize(z)).square().sum(dim=1).mean() for p, z in ((p0, z1), (p1, z0))
    ]
    torch.testing.assert_close(loss, sum(distances))


def test_simsiam_is_the_mean_of_both_directions(monkeypatch):
    method, views = make("SimSiam", monkeypatch, hidden_dim=16, prediction_dim=8, output_dim=16)
    z0, z1 = embeddings(method, views)
    p0, p1 = method.predictor(z0), method.predictor(z1)
    # Algorithm 1 of the paper: D(p1, z2)/2 + D(p2, z1)/2.
    expected = -(cosine_similarity(p0, z1).mean() + cosine_similarity(p1, z0).mean()) / 2
    torch.testing.assert_close(method.step(views).loss, expected)


def test_moco_is_the_cross_entropy_against_key_and_queue(monkeypatch):
    method, views = make("MoCo", monkeypatch, queue_size=32, output_dim=8)
    query = normalize(embeddings(method, views)[0])
    key = normalize(targets(method, views)[1])
    queue = method.criterion.memory_bank.bank.clone()
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / 0.2
    expected = cross_entropy(logits, torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(method.step(views).loss, expected)


def test_moco_v3_is_both_directions_times_2_t(monkeypatch):
    method, views = make("MoCoV3", monkeypatch, hidden_dim=16, output_dim=8, temperature=0.3)
    q0, q1 = (normalize(method.predictor(z)) for z in embeddings(method, views))
    k0, k1 = (normalize(k) for k in targets(method, views))
    own = torch.arange(8)
    expected = 0.6 * (cross_entropy(q0 @ k1.T / 0.3, own) + cross_entropy(q1 @ k0.T / 0.3, own))
    torch.testing.assert_close(method.step(views).loss, expected)


def test_swav_is_the_benchmarks(monkeypatch):
    method, views = make("SwAV", monkeypatch, hidden_dim=16, output_dim=8, prototypes=12)
    method.prototypes.normalize()
    scores = [method.prototypes(z) for z in embeddings(method, views)]
    torch.testing.assert_close(method.step(views).loss, SwaVLoss()(scores, []).reshape(()))


def test_dino_is_the_benchmarks(monkeypatch):
    method, views = make("DINO", monkeypatch, hidden_dim=16, bottleneck_dim=8, output_dim=24)
    student = [method.student(method.encode(view)) for view in views]
    with torch.no_grad():
        teacher = [method.teacher(method.teacher_backbone(view)) for view in views]
    expected = DINOLoss(24)(teacher, student, teacher_temp=0.04)
    torch.testing.assert_close(method.step(views).loss, expected)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(0, [0.07] * 4), (4, [0.04, 0.05, 0.06, 0.07]), (2, [0.04] + [0.07] * 3)],
)
def test_dinos_teacher_has_the_temperature_that_was_asked_for(warmup, expected, monkeypatch):
    sizes = {"hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 24}
    settings = {"teacher_temperature": 0.07, "teacher_warmup_epochs": warmup}
    method, _ = make("DINO", monkeypatch, **sizes, **settings)
    found = []
    for epoch in range(4):
        monkeypatch.setattr(type(method), "current_epoch", epoch)
        found.append(method.temperature_now())
    assert found == pytest.approx(expected)


def test_mae_is_the_mean_over_hidden_pixels():
    torch.manual_seed(0)
    vit = BackboneSettings("vit_tiny", image_size=16, patch_size=4)
    settings = {"decoder_layers": 1, "decoder_heads": 2, "decoder_dim": 16}
    method = methods.MAE(backbone=vit, normalize_patches=False, **settings)
    torch.nn.init.zeros_(method.decoder.prediction_head.weight)
    torch.nn.init.zeros_(method.decoder.prediction_head.bias)
    # Predictions of zero: whatever is hidden, the error is the mean square of equal patches.
    patch = torch.rand(2, 3, 4, 4)
    images = patch.repeat(1, 1, 4, 4)
    expected = mse_loss(torch.zeros_like(patch), patch)
    torch.testing.assert_close(method.step([images]).loss, expected)


def test_byols_ldreg_is_the_sum_of_the_two_views_means():
    from lightly_collapse.pretrain.settings import LDReg  # noqa: PLC0415

    settings = {"backbone": RESNET, "hidden_dim": 16, "ldreg": LDReg(0.005, k=4)}
    assert methods.BYOL(**settings).ldreg.weight == pytest.approx(0.01)
    assert methods.VICReg(output_dim=16, **settings).ldreg.weight == 0.005
