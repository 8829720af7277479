"""The regularizers on the weights of ResNet-50 against the plain ways to compute them.

Run with `pytest tests/benchmarks/test_regularizers.py -m benchmark -s` to see the ratios.
"""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from lightly_collapse.functional.intrinsic_dimension import lid_mom_from_distances
from lightly_collapse.functional.neighbors import neighbor_distances
from lightly_collapse.loss import OrthogonalityRegularizer


def fastest(functions: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """The least seconds of each function, in turns, so that all meet the same machine."""
    for function in functions.values():
        function()
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            gc.collect()
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    print("\n" + ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in best.items()))
    return best


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = resnet50()
    model.fc = nn.Identity()
    return model


def weights(backbone: nn.Module) -> list[nn.Parameter]:
    return [p for p in backbone.parameters() if p.ndim == 4]


def gram(w: Tensor) -> Tensor:
    return w @ w.T if len(w) <= w.shape[1] else w.T @ w


def step(backbone: nn.Module, penalty: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        backbone.zero_grad()
        penalty().backward()

    return run


def plain_so(backbone: nn.Module) -> Tensor:
    terms = []
    for p in weights(backbone):
        g = gram(p.flatten(1))
        terms.append((g - torch.eye(len(g))).square().sum())
    return torch.stack(terms).sum()


def plain_srip(backbone: nn.Module) -> Tensor:
    """The Gram matrix of the smaller side, two power iterations on it, autograd."""
    terms = []
    for p in weights(backbone):
        g = gram(p.flatten(1))
        a = g - torch.eye(len(g))
        v = nn.functional.normalize(torch.rand(len(a)), dim=0)
        for _ in range(2):
            v = nn.functional.normalize(a @ v, dim=0)
        terms.append((a @ v).norm())
    return torch.stack(terms).sum()


def two_products(backbone: nn.Module) -> None:
    with torch.no_grad():
        for p in weights(backbone):
            w = p.flatten(1)
            g = gram(w)
            _ = g @ w if len(w) <= w.shape[1] else w @ g


def test_so(backbone: nn.Module) -> None:
    regularizer = OrthogonalityRegularizer(backbone, "so", weight=1.0)
    times = fastest(
        {
            "SO": step(backbone, regularizer),
            "autograd": step(backbone, lambda: plain_so(backbone)),
            "two products": lambda: two_products(backbone),
        }
    )
    print(f"autograd / SO {times['autograd'] / times['SO']:.2f}")
    print(f"SO / two products {times['SO'] / times['two products']:.2f}")
    assert times["autograd"] >= 1.5 * times["SO"]
    assert times["SO"] <= 1.3 * times["two products"]


def test_srip(backbone: nn.Module) -> None:
    regularizer = OrthogonalityRegularizer(backbone, "srip", weight=1.0)
    times = fastest(
        {
            "SRIP": step(backbone, regularizer),
            "Gram matrix": step(backbone, lambda: plain_srip(backbone)),
        }
    )
    print(f"Gram matrix / SRIP {times['Gram matrix'] / times['SRIP']:.2f}")
    assert times["Gram matrix"] >= 6 * times["SRIP"]


@pytest.mark.parametrize("kind", ["so", "srip"])
def test_gradient_outside_of_the_graph(backbone: nn.Module, kind: str) -> None:
    # As in training: gradients of a loss are there already.
    inside, outside = (OrthogonalityRegularizer(backbone, kind) for _ in range(2))
    for p in backbone.parameters():
        p.grad = torch.zeros_like(p)
    times = fastest(
        {"module": lambda: inside().backward(), "callback": outside.accumulate_gradient}
    )
    print(f"callback / module {times['callback'] / times['module']:.2f}")
    assert times["callback"] <= 1.1 * times["module"]


def test_share_of_a_training_step(backbone: nn.Module) -> None:
    images = torch.randn(16, 3, 224, 224)
    regularizers = {k: OrthogonalityRegularizer(backbone, k) for k in ("so", "srip", "conv")}
    functions = {"step": step(backbone, lambda: backbone(images).square().mean())}
    functions |= {k: step(backbone, r) for k, r in regularizers.items()}
    times = fastest(functions, rounds=2)
    for kind in regularizers:
        print(f"{kind}: {times[kind] / times['step']:.1%} of a step of 16 images")
    assert times["srip"] <= times["so"] <= 0.1 * times["step"]


# --- LDReg ----------------------------------------------------------------------------------------

QUERIES, POINTS, DIMENSIONS, K = 512, 4096, 2048, 64


def ldreg_ways() -> dict[str, Callable[[], object]]:
    g = torch.Generator().manual_seed(0)
    decay = 0.99 ** torch.arange(DIMENSIONS)
    points = torch.randn(POINTS, DIMENSIONS, generator=g) * decay
    x = points[:QUERIES].clone().requires_grad_()
    own = torch.arange(QUERIES)

    def ours() -> Tensor:
        lid = lid_mom_from_distances(neighbor_distances(x, points, K, own))
        return torch.autograd.grad(-lid.log().mean(), x)[0]

    def plain() -> Tensor:
        distances = torch.cdist(x, points).scatter(1, own[:, None], torch.inf)
        lid = lid_mom_from_distances(distances.sort(dim=1).values[:, :K])
        return torch.autograd.grad(-lid.log().mean(), x)[0]

    return {"LDReg": ours, "sort": plain}


def test_ldreg() -> None:
    times = fastest(ldreg_ways())
    print(f"sort / LDReg {times['sort'] / times['LDReg']:.2f}")
    assert times["sort"] >= 2 * times["LDReg"]


def peak_mebibytes(function: Callable[[], object]) -> float:
    """Growth of the resident set while the function runs."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    done.set()
    thread.join()
    return (highest - before) / 2**20


def test_ldreg_memory() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the resident set is read from /proc")
    # Each in a process of its own: memory that was freed before is used again without a trace.
    peak = {}
    for name in ("LDReg", "sort"):
        command = [sys.executable, "-m", "tests.benchmarks.test_regularizers", name]
        root = Path(__file__).parents[2]
        run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
        peak[name] = float(run.stdout)
    print("\n" + ", ".join(f"{name} {size:.0f} MiB" for name, size in peak.items()))
    assert peak["LDReg"] <= peak["sort"] / 2


if __name__ == "__main__":
    print(peak_mebibytes(ldreg_ways()[sys.argv[1]]))
