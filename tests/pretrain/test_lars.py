"""LARS: Lightly's step where nothing is clipped, the written-out formula where it is."""

import pytest
import torch
from lightly.utils import lars

from lightly_collapse.pretrain.lars import LARS


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4)


def train(module, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        optimizer.step()
    return module.weight.detach()


def test_unclipped_steps_are_lightlys():
    ours, theirs = layer(), layer()
    settings = {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-2, "trust_coefficient": 0.02}
    expected = train(theirs, lars.LARS(theirs.parameters(), **settings))
    torch.testing.assert_close(train(ours, LARS(ours.parameters(), **settings)), expected)


@pytest.mark.parametrize("eta", [0.02, 50.0])
def test_a_clipped_rate_is_the_smaller_of_the_adapted_one_and_the_schedules(eta):
    module = layer()
    before = module.weight.detach().clone()
    optimizer = LARS(
        module.parameters(), lr=0.5, weight_decay=0.1, trust_coefficient=eta, clip_rate=True
    )
    after = train(module, optimizer, steps=1)
    g = module.weight.grad
    adapted = eta * before.norm() / (g.norm() + 0.1 * before.norm() + 1e-8)
    rate = min(float(adapted), 0.5)
    assert (rate == 0.5) == (eta == 50.0)
    torch.testing.assert_close(after, before - rate * (g + 0.1 * before))


def test_a_weight_of_zero_norm_takes_the_plain_step():
    module = layer()
    torch.nn.init.zeros_(module.weight)
    module.bias.data.fill_(1.0)
    optimizer = LARS(module.parameters(), lr=0.5, weight_decay=0.1, clip_rate=True)
    after = train(module, optimizer, steps=1)
    torch.testing.assert_close(after, -0.5 * module.weight.grad)
