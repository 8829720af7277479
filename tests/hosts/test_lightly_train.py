"""LightlyTrain: the callbacks reach its Trainer and do there what they do elsewhere.

Its loss is its own, so that its training cannot be the one of `test_hosts.py`: what the callbacks
add to gradient and loss is compared with the modules on the weights and rows of the same step, to
1e-6. Runs where lightly-train is installed.
"""

import copy
import importlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightly_collapse import functional
from lightly_collapse._hooks import Hook
from lightly_collapse.callbacks import (
    CollapseMonitor,
    LDRegCallback,
    OrthogonalityCallback,
    extra_callbacks,
)
from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IMAGES, BATCH, K = 16, 8, 3
WEIGHT = 1e-4


@pytest.fixture
def lightly_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("lightly_train")
    pillow = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    (tmp_path / "images").mkdir()
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pillow.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    registry = importlib.import_module("lightning_fabric.utilities.registry")
    points = [EntryPoint("ours", "lightly_collapse._extra_callbacks:factory", "")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return package


def pretrain(package: Any, folder: Path) -> Path:
    package.pretrain(
        out=str(folder / "out"),
        data=str(folder / "images"),
        model="torchvision/resnet18",
        method="simclr",
        epochs=1,
        batch_size=BATCH,
        num_workers=0,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        transform_args={"image_size": (32, 32)},
        callbacks={"model_export": None},
    )
    return folder / "out"


def readings_of(out: Path) -> dict[str, float]:
    header, row = (line.split(",") for line in (out / "collapse.csv").read_text().splitlines())
    return {name: float(value) for name, value in zip(header, row, strict=True) if value}


class Rows(CollapseMonitor):
    """Keeps what the layer gives."""

    seen: list[Tensor]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        self.seen = []
        pl_module.get_submodule(self.layers[0]).register_forward_hook(
            Hook(lambda module, inputs, z: self.seen.append(z.detach().flatten(1)))
        )


class Gradient(OrthogonalityCallback):
    """Compares each step's gradient with that of the module form, added to what was there."""

    steps: int = 0
    penalties: list[float]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        module = pl_module.get_submodule(self.target)
        plain = copy.deepcopy(module)
        plain.zero_grad()
        penalty = OrthogonalityRegularizer(plain, weight=WEIGHT)()
        penalty.backward()
        before = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        for p, q, gradient in zip(module.parameters(), plain.parameters(), before, strict=True):
            if q.grad is not None:
                expected = q.grad if gradient is None else gradient + q.grad
                torch.testing.assert_close(p.grad, expected, rtol=1e-6, atol=1e-7)
        self.steps += 1
        self.penalties = [*getattr(self, "penalties", []), float(penalty.detach()) / WEIGHT]


class Loss(LDRegCallback):
    """Compares what is added to the loss with the module form of the same views."""

    steps: int = 0

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        assert self._hook is not None
        views = [view.detach() for view in self._hook._views]
        expected = float(loss.detach()) + float(LDRegularizer(weight=WEIGHT, k=K)(*views))
        super().on_before_backward(trainer, pl_module, loss)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
        assert len(views) == 1  # LightlyTrain passes both views of SimCLR at once
        self.steps += 1


def test_the_callbacks_do_what_they_do_elsewhere(
    lightly_train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "embedding_model"
    gradient = Gradient("so", WEIGHT, target=layer)
    loss = Loss(weight=WEIGHT, k=K, layer=layer)
    rows = Rows((layer,), lid_k=K)
    with extra_callbacks(gradient, loss, rows):
        out = pretrain(lightly_train, tmp_path)
    assert gradient.steps == loss.steps == IMAGES // BATCH
    read = readings_of(out)
    seen = torch.cat(rows.seen).double()
    assert read[f"{layer}/rows"] == len(seen) == 2 * IMAGES
    values = functional.singular_values(seen, center=True)
    expected = float(functional.effective_rank(values))
    # The reading is of a float32 scatter, this of the rows in float64.
    assert read[f"{layer}/effective_rank"] == pytest.approx(expected, rel=1e-5)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    logged = [row[key] for row in lines if (key := f"orthogonality/{layer}") in row]
    assert logged
    for value in logged:
        assert min(abs(value / penalty - 1) for penalty in gradient.penalties) < 1e-5
    with capsys.disabled():
        print(f"\n{'LightlyTrain':18} gradient and loss within 1e-6, effective rank within 1e-5")
