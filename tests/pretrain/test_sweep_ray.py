"""The cells of a sweep on a local Ray cluster: the results of the sequential run."""

import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from lightly_collapse.pretrain import sweep as module
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.configs import merge
from lightly_collapse.pretrain.sweep import sweep
from lightly_collapse.pretrain.sweep_file import read_sweep

ray = pytest.importorskip("ray", reason="Ray is not installed")

SETTINGS = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "limit_val_batches": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "data": {"class_path": "Digits", "init_args": {"batch_size": 32, "train_images": 64}},
    "model": {
        "class_path": "SimCLR",
        "init_args": {"backbone": {"name": "resnet18", "stem": "cifar", "width": 4}},
    },
}


@pytest.fixture(scope="module")
def cluster():
    with pytest.importorskip("tests.ray_cluster").ray_cluster():
        yield


def write(folder, seeds=(0, 1), resources=None, method=None):
    methods = {"SimCLR": {"resources": method} if method else {}}
    content = {"seeds": list(seeds), "settings": SETTINGS, "methods": methods}
    if resources is not None:
        content["resources"] = resources
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_shares_are_of_the_file_and_of_a_method(tmp_path):
    path = write(tmp_path, resources={"cpus": 4, "gpus": 1}, method={"gpus": 0.25})
    assert read_sweep(path)[0].resources == {"cpus": 4, "gpus": 0.25}
    for wrong in ({"cpu": 1}, {"cpus": -1}, {"gpus": "two"}, 3):
        with pytest.raises(ValueError, match="resources must be `cpus` and `gpus`"):
            read_sweep(write(tmp_path, resources=wrong))


def test_example_of_the_guide(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "guide" / "scale.md"
    if not page.is_file():
        pytest.skip("not run from a checkout")
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    content = {"seeds": [0], "settings": SETTINGS, **yaml.safe_load(block)}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    (cell,) = read_sweep(tmp_path / "sweep.yaml")
    assert cell.resources == {"cpus": 4, "gpus": 0.5}


@pytest.mark.slow
def test_the_results_are_those_of_the_sequential_run(cluster, tmp_path):
    path = write(tmp_path, resources={"cpus": 1})
    local = sweep(path, tmp_path / "local")
    distributed = sweep(path, tmp_path / "ray", engine="ray")
    assert len(distributed) == len(local) == 2
    for one, other in zip(distributed, local, strict=True):
        assert (one["variant"], one["seed"]) == (other["variant"], other["seed"])
        for name in ("effective_rank", "rankme", "mlid", "orthogonality_residual"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert (tmp_path / "ray/report.html").exists()
    assert sweep(path, tmp_path / "ray", engine="ray") == distributed  # nothing is run again


@pytest.mark.slow
def test_a_killed_cell_is_resumed(cluster, tmp_path, monkeypatch):
    path = write(tmp_path, seeds=[0])
    whole, mark = sweep(path, tmp_path / "whole")[0], tmp_path / "killed"
    run = module._run

    def dying(cell, folder, settings):
        if not mark.exists():
            mark.touch()
            one = {**settings, "trainer": {**settings.get("trainer", {}), "max_epochs": 1}}
            pretrain(merge(merge(cell.config, one), {"output": str(folder)}))
            os.kill(os.getpid(), signal.SIGKILL)
        run(cell, folder, settings)

    monkeypatch.setattr(module, "_run", dying)
    found = sweep(path, tmp_path / "out", engine="ray")[0]
    assert mark.exists()
    assert found["resumed"]
    assert found["epochs"] == whole["epochs"] == 2


@pytest.mark.slow
def test_no_cell_is_begun_after_its_time(cluster, tmp_path, capsys):
    assert sweep(write(tmp_path), tmp_path / "out", minutes=1e-9, engine="ray") == []
    assert "not started, the time is over" in capsys.readouterr().out


@pytest.mark.slow
def test_the_error_of_a_cell_is_that_of_the_command(cluster, tmp_path, monkeypatch):
    def failing(cell, folder, settings):
        raise ValueError(f"seed must be another, got {cell.seed}")

    monkeypatch.setattr(module, "_run", failing)
    with pytest.raises(ValueError, match=r"^seed must be another, got 3$"):
        sweep(write(tmp_path, seeds=[3]), tmp_path / "out", engine="ray")
