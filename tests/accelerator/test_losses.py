"""Losses and regularizers on the GPU: value and gradient of the CPU in float64, autocast or not."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse.callbacks import LDRegCallback, OrthogonalityCallback
from lightly_collapse.loss import (
    DirectCLRLoss,
    LDRegularizer,
    OrthogonalityRegularizer,
    VarianceCovarianceRegularizer,
)

KINDS = ("so", "dso", "mc", "srip", "conv", "norms", "shape")
DTYPES = (None, torch.bfloat16, torch.float16)


def encoder(groups=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20),
    )  # fmt: skip


def gradients(net):
    return [p.grad.cpu().double() for p in net.parameters() if p.ndim > 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_penalty_and_gradient(gpu, kind, groups, dtype):
    net = encoder(groups).double()
    expected = OrthogonalityRegularizer(net, kind=kind, weight=0.1)()
    expected.backward()
    ours = encoder(groups).to(gpu)
    regularizer = OrthogonalityRegularizer(ours, kind=kind, weight=0.1)
    with torch.autocast(gpu.type, dtype, enabled=dtype is not None):
        value = regularizer()
    assert value.dtype == torch.float32
    value.backward()
    torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-3, atol=1e-5)
    for a, b in zip(gradients(ours), gradients(net), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if kind == "srip" else 1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["so", "srip"])
def test_accumulate_gradient_under_a_grad_scaler(gpu, kind):
    def trained(scaled):
        net = encoder().to(gpu)
        regularizer = OrthogonalityRegularizer(net, kind=kind, weight=0.05)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        scaler = torch.amp.GradScaler("cuda", enabled=scaled)
        x = torch.randn(5, 16, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(gpu)
        for batch in x:
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16, enabled=scaled):
                loss = net(batch).float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            regularizer.accumulate_gradient()
            scaler.step(optimizer)
            scaler.update()
        return net

    for a, b in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


def views(n=96, d=24):
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, n, d, generator=g, dtype=torch.float64)


LOSSES = {
    "ldreg l1": LDRegularizer(weight=0.1, k=16),
    "ldreg l2": LDRegularizer(weight=0.1, k=16, norm="l2"),
    "ldreg mle": LDRegularizer(weight=0.1, k=16, estimator="mle"),
    "directclr": DirectCLRLoss(loss_dim=8),
    "variance-covariance": VarianceCovarianceRegularizer(1.0, 0.04),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(gpu, name, dtype):
    exact = views().requires_grad_()
    expected = LOSSES[name](exact[0], exact[1])
    expected.backward()
    r = views().float().to(gpu).requires_grad_()
    with torch.autocast(gpu.type, dtype, enabled=dtype is not None):
        value = copy.deepcopy(LOSSES[name]).to(gpu)(r[0], r[1])
    value.backward()
    torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(r.grad.cpu().double(), exact.grad, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("kind", ["so", "srip", "conv"])
def test_compiled_by_inductor(gpu, kind):
    net = encoder().to(gpu)
    regularizer = OrthogonalityRegularizer(net, kind=kind, weight=0.1)
    eager = regularizer()
    compiled = torch.compile(OrthogonalityRegularizer(net, kind=kind, weight=0.1))()
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_ldreg_compiled_by_inductor(gpu):
    r = views().float().to(gpu)
    regularizer = LDRegularizer(weight=0.1, k=16)
    torch.testing.assert_close(
        torch.compile(regularizer)(r[0], r[1]), regularizer(r[0], r[1]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_callbacks_under_lightnings_precisions(gpu, precision, tmp_path):
    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.backbone = encoder()

        def training_step(self, batch, batch_idx):
            return self.backbone(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    def fit(*callbacks):
        model = Model()
        trainer = pl.Trainer(
            accelerator="gpu", devices=1, precision=precision, max_epochs=3, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=list(callbacks),
        )  # fmt: skip
        x = torch.randn(128, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        trainer.fit(model, DataLoader(TensorDataset(x), batch_size=64))
        return model

    @torch.no_grad()
    def penalty(model):
        return float(OrthogonalityRegularizer(model.backbone, weight=1.0)())

    plain, orthogonal = fit(), fit(OrthogonalityCallback(kind="so", weight=0.5))
    assert penalty(orthogonal) < 0.8 * penalty(plain)
    diverse = fit(LDRegCallback(layer="backbone", weight=0.1, k=8))
    assert all(torch.isfinite(p).all() for p in diverse.parameters())
    assert any(
        not torch.equal(a.cpu(), b.cpu())
        for a, b in zip(diverse.parameters(), plain.parameters(), strict=True)
    )
