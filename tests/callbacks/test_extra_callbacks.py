"""Callbacks for trainers that other packages make: the entry points of both Lightnings."""

import importlib
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from lightly_collapse._extra_callbacks import factory
from lightly_collapse.callbacks import CollapseMonitor, extra_callbacks

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
