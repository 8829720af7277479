"""Callbacks for trainers that other packages make: both Lightnings' entry points, LightlyTrain."""

import importlib
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from lightly_collapse import functional
from lightly_collapse._extra_callbacks import factory
from lightly_collapse._hooks import Hook
from lightly_collapse.callbacks import CollapseMonitor, OrthogonalityCallback, extra_callbacks

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "pytorch_lightning": "lightning_fabric.utilities.registry",
    "lightning.pytorch": "lightning.fabric.utilities.registry",
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
@pytest.mark.parametrize("name", PACKAGES)
def test_the_first_trainer_made_within_gets_them(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = pytest.importorskip(name)
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    group = f"{name}.callbacks_factory"
    points = [EntryPoint(n, v, group) for n, v in project["entry-points"][group].items()]
    registry = importlib.import_module(PACKAGES[name])
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monitor = CollapseMonitor()
    settings: Any = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    with extra_callbacks(monitor):
        first, second = package.Trainer(**settings), package.Trainer(**settings)
    third = package.Trainer(**settings)
    assert [monitor in trainer.callbacks for trainer in (first, second, third)] == [1, 0, 0]
    wrong = extra_callbacks("monitor")
    with pytest.raises(TypeError, match="callbacks must be callbacks of Lightning, got str"), wrong:
        pass
    with extra_callbacks(monitor):
        pass
    assert factory() == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightly_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lightly_train = pytest.importorskip("lightly_train")
    pillow = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    (tmp_path / "images").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pillow.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    registry = importlib.import_module(PACKAGES["pytorch_lightning"])
    points = [EntryPoint("ours", "lightly_collapse._extra_callbacks:factory", "")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    layer = "embedding_model"

    class Watch(OrthogonalityCallback):
        """Keeps what the layer gives and the penalty that is logged, to compare."""

        rows: list[torch.Tensor]
        penalties: list[float]

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            self.rows, self.penalties = [], []
            self.weights = [
                p
                for m in pl_module.get_submodule(layer).modules()
                if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
                for p in [m.weight]
            ]
            pl_module.get_submodule(layer).register_forward_hook(
                Hook(lambda m, i, z: self.rows.append(z.detach().flatten(1)))
            )

        def on_before_optimizer_step(self, *arguments: Any) -> None:
            expected = sum(
                float(functional.orthogonality_penalty(w.detach())) for w in self.weights
            )
            self.penalties.append(expected)
            super().on_before_optimizer_step(*arguments)

    watch = Watch("so", 1e-4, target=layer)
    monitor = CollapseMonitor((layer,), lid_k=3)
    with extra_callbacks(watch, monitor):
        lightly_train.pretrain(
            out=str(tmp_path / "out"),
            data=str(tmp_path / "images"),
            model="torchvision/resnet18",
            method="simclr",
            epochs=1,
            batch_size=8,
            num_workers=0,
            accelerator="cpu",
            devices=1,
            precision="32-true",
            transform_args={"image_size": (32, 32)},
            callbacks={"model_export": None},
        )
    table = (tmp_path / "out" / "collapse.csv").read_text().splitlines()
    read = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    rows = torch.cat(watch.rows)
    assert float(read[f"{layer}/rows"]) == len(rows) == 32
    values = functional.singular_values(rows.double(), center=True)
    expected = float(functional.effective_rank(values))
    assert float(read[f"{layer}/effective_rank"]) == pytest.approx(expected, rel=1e-6)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    logged = [
        row[key] for row in map(json.loads, lines) if (key := f"orthogonality/{layer}") in row
    ]
    assert logged
    assert all(min(abs(v / p - 1) for p in watch.penalties) < 1e-5 for v in logged)
