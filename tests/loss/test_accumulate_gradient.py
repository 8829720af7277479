"""The penalty beside the graph in plain loops: with a GradScaler, and with Accelerate."""

import pytest
import torch
from torch import nn

from lightly_collapse.loss import OrthogonalityRegularizer

WEIGHT = 0.05


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def batches():
    return torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(1))


def in_the_loss():
    net = model()
    regularizer = OrthogonalityRegularizer(net, weight=WEIGHT)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x in batches():
        optimizer.zero_grad()
        (net(x).square().mean() + regularizer()).backward()
        optimizer.step()
    return net


def assert_same(ours, theirs):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unscale", [True, False])
def test_with_a_grad_scaler(unscale):
    net = model()
    regularizer = OrthogonalityRegularizer(net, weight=WEIGHT)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x in batches():
        optimizer.zero_grad()
        scaler.scale(net(x).square().mean()).backward()
        if unscale:
            scaler.unscale_(optimizer)
        regularizer.accumulate_gradient(scale=1.0 if unscale else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert_same(net, in_the_loss())


def test_with_accelerate_under_gradient_accumulation():
    accelerate = pytest.importorskip("accelerate")
    host = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = model()
    regularizer = OrthogonalityRegularizer(net, weight=WEIGHT)
    run, optimizer = host.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
    for x in batches().repeat_interleave(2, dim=0):  # the same batch twice is that batch
        with host.accumulate(run):
            host.backward(run(x).square().mean())
            if host.sync_gradients:
                regularizer.accumulate_gradient()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net, in_the_loss())
