"""The published linear evaluations: their values, and that they are trained by them."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightly_collapse.pretrain.linear_probe import (
    PROTOCOLS,
    LinearProtocol,
    labelled_share,
    train_linear,
)


def test_protocols_are_the_published_ones():
    lars, sgd = PROTOCOLS["lars"], PROTOCOLS["sgd"]
    # LDReg, configs/simclr/in1k/rn50_bs2048_e100/linear_prob.yaml and models/resnet.py.
    assert (lars.optimizer, lars.learning_rate, lars.epochs, lars.batch_size) == (
        *("lars", 0.1, 90, 1024),
    )
    assert (lars.weight_decay, lars.momentum, lars.min_lr_factor) == (0.0, 0.9, 1e-6)
    assert lars.normalize
    assert lars.rate(0) == pytest.approx(0.4)
    # DirectCLR, directclr/linear_probe.py.
    assert (sgd.optimizer, sgd.learning_rate, sgd.epochs, sgd.batch_size) == ("sgd", 0.1, 100, 256)
    assert (sgd.weight_decay, sgd.momentum, sgd.normalize) == (1e-6, 0.9, False)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], sgd.rate(0)), sgd.epochs
    )
    for epoch in range(3):
        assert sgd.rate(epoch) == pytest.approx(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()


def test_lars_adapts_the_weights_though_they_have_no_decay():
    torch.manual_seed(3)
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    protocol = LinearProtocol("lars", 0.1, epochs=1, batch_size=256)
    torch.manual_seed(0)
    layer = train_linear(lambda _: [(x, y)], 4, 3, protocol)[0]
    torch.manual_seed(0)
    torch.nn.Linear(4, 3)
    w = (0.01 * torch.randn(3, 4)).requires_grad_()
    b = torch.zeros(3, requires_grad=True)
    cross_entropy(x @ w.T + b, y).backward()
    # The official step: w - lr * eta * |w| / |g| * g, and b - lr * g.
    step = 0.1 * 0.001 * w.norm() / w.grad.norm() * w.grad
    torch.testing.assert_close(layer.weight, w - step, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(layer.bias, b - 0.1 * b.grad, rtol=1e-4, atol=1e-7)


def test_a_separable_problem_is_learned_whatever_the_scale_of_a_feature():
    torch.manual_seed(0)
    y = torch.arange(64) % 2
    x = torch.stack([3.0 + 0.1 * y, torch.randn(64)], dim=1)
    protocol = LinearProtocol("sgd", 1.0, epochs=60, batch_size=64, normalize=True)
    layer = train_linear(lambda _: [(x, y)], 2, 2, protocol)
    assert layer(x).argmax(dim=1).equal(y)
    assert not layer.training


def test_a_share_keeps_classes_in_proportion():
    labels = torch.cat([torch.zeros(1000), torch.ones(300), torch.full((5,), 2.0)]).long()
    chosen = labelled_share(labels, 0.01, seed=1)
    assert labels[chosen].bincount().tolist() == [10, 3, 1]
    assert not chosen.equal(labelled_share(labels, 0.01, seed=2))
    assert labelled_share(labels, 1.0).equal(torch.arange(1305))


def test_features_that_are_not_finite_are_refused():
    x, y = torch.full((4, 2), math.nan), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="loss is nan in epoch 0"):
        train_linear(lambda _: [(x, y)], 2, 2, LinearProtocol("sgd", 0.1, 2, 4))
