"""What the regularizers add to a training step on a GPU."""

import time

import pytest
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
STEPS, ROUNDS = 5, 5


def seconds(step):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS


def test_share_of_a_simclr_step_of_resnet50_with_64_images():
    backbone = torchvision.models.resnet50()
    backbone.fc = nn.Identity()
    backbone = backbone.cuda().to(memory_format=torch.channels_last)
    head = SimCLRProjectionHead(2048, 2048, 128).cuda()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, 1e-3)
    x = torch.randn(128, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    penalties = {
        kind: OrthogonalityRegularizer(backbone, kind=kind) for kind in ("so", "srip", "conv")
    }
    local = LDRegularizer(k=64)

    def step(name=None):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            features = backbone(x)
            z0, z1 = head(features).chunk(2)
            loss = NTXentLoss()(z0, z1)
        if name == "ldreg":
            loss = loss + local(*features.chunk(2))
        elif name:
            loss = loss + penalties[name]()
        loss.backward()
        optimizer.step()

    names = [None, "so", "srip", "conv", "ldreg"]
    for name in names:
        step(name)
    best = dict.fromkeys(names, float("inf"))
    for _ in range(ROUNDS):
        for name in names:
            best[name] = min(best[name], seconds(lambda name=name: step(name)))
    print(f"\n{torch.cuda.get_device_name()}, bfloat16 autocast, {1e3 * best[None]:.1f} ms a step")
    for name in names[1:]:
        print(f"{name}: {100 * (best[name] / best[None] - 1):+.1f} %")
    assert best["so"] < 1.15 * best[None]
    assert best["srip"] < 1.15 * best[None]
    assert best["ldreg"] < 1.15 * best[None]
