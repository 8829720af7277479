"""How seconds and memory grow with rows, dimensions and images; nothing holds an N x N matrix.

Every size runs in a process of its own, whose peak memory is read from the system.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, time, warnings
import torch
from torch.utils.data import DataLoader, TensorDataset
from lightly_collapse.functional import lid_mom
from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.loss import LDRegularizer
from lightly_collapse.metrics import Spectrum
from lightly_collapse.report import measure

warnings.simplefilter("ignore")
torch.set_num_threads(1)


def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def lid(rows):
    lid_mom(torch.randn(rows, 128), k=20)


def ldreg(rows):
    z = torch.randn(rows, 128, requires_grad=True)
    LDRegularizer(k=64)(z).backward()


def sketch(dimensions):
    metric = Spectrum()
    for _ in range(32):
        metric.update(torch.randn(256, dimensions))
    metric.compute()


def measured(images):
    model = create_backbone(BackboneSettings("resnet18", stem="cifar", width=16))
    data = TensorDataset(torch.rand(images, 3, 32, 32))
    measure(model, DataLoader(data, batch_size=64))


function = {"lid": lid, "ldreg": ldreg, "sketch": sketch, "measure": measured}[sys.argv[1]]
size = int(sys.argv[2])
function({"sketch": 32, "measure": 64}.get(sys.argv[1], 200))  # what the first call loads
before, began = peak(), time.process_time()
function(size)
print(json.dumps({"seconds": time.process_time() - began, "megabytes": peak() - before}))
"""
SIZES = {
    "lid": [1000, 4000, 16_000, 64_000],
    "ldreg": [1000, 4000, 16_000, 64_000],
    "sketch": [128, 512, 2048, 4096],
    "measure": [500, 1000, 2000, 5000],
}
# Megabytes beyond the input, at the largest size: that of N x N in float32 is 15,600 for 64,000.
MOST = {"lid": 500, "ldreg": 1000, "sketch": 1500, "measure": 500}
# Seconds grow at most with this power of the size, fixed costs aside.
POWER = {"lid": 2.2, "ldreg": 2.2, "sketch": 2.3, "measure": 1.2}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("what", SIZES)
def test_growth(what):
    found = {}
    for size in SIZES[what]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what, str(size)],
            capture_output=True,
            text=True,
            check=True,
        )
        found[size] = json.loads(done.stdout)
        print(f"\n{what} {size}: {found[size]['seconds']:.2f} s, {found[size]['megabytes']:.0f} MB")
    *_, before, last = SIZES[what]
    assert found[last]["megabytes"] <= MOST[what]
    growth = found[last]["seconds"] / max(found[before]["seconds"], 0.1)
    assert growth <= 1.5 * (last / before) ** POWER[what]
