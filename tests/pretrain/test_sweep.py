"""The sweep: what it runs, that it takes up where it was, what it writes, how it refuses."""

import json
import statistics
from pathlib import Path

import pytest
import yaml

from lightly_collapse.cli import main
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain import sweep as module
from lightly_collapse.pretrain.checks import METHODS
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.sweep import COLUMNS, summarize, sweep
from lightly_collapse.pretrain.sweep_file import read_sweep, settings_of
from tests.page_reader import assert_self_contained, count_charts

SWEEPS = sorted((Path(__file__).parents[2] / "configs/sweep").glob("*.yaml"))
TINY = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
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
SO = {"settings": {"model": {"init_args": {"orthogonality": {"kind": "so", "weight": 1.0}}}}}


def write(folder, **changes):
    content = {
        "seeds": [0, 1],
        "settings": TINY,
        "methods": {"SimCLR": {}, "SimSiam": {"settings": {"model": {"class_path": "SimSiam"}}}},
        "regularizers": {"SO": SO},
        "cells": [{"methods": ["SimCLR"], "regularizers": ["none", "SO"]}],
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    results = sweep(write(folder), folder / "out")
    return folder, results


def test_runs_every_cell_and_writes_one_table_and_one_page(finished):
    folder, results = finished
    assert [(r["variant"], r["seed"]) for r in results] == [
        ("SimCLR", 0),
        ("SimCLR + SO", 0),
        ("SimCLR", 1),
        ("SimCLR + SO", 1),
    ]
    assert json.loads((folder / "out/results.json").read_text()) == results
    table = (folder / "out/table.md").read_text().splitlines()
    assert len(table) == 4
    own = [r["effective_rank"] for r in results if r["variant"] == "SimCLR"]
    shown = f"{statistics.fmean(own):.1f} ± {statistics.stdev(own):.1f}"
    assert shown in table[2]
    page = (folder / "out/report.html").read_text()
    assert "4 of 4 runs finished" in page
    assert shown in page
    assert count_charts(page) == 3
    assert_self_contained(page)
    for name in ("spectrum.png", "weights.png"):
        assert (folder / "out" / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_the_cells_differ_by_what_they_say(finished):
    folder, results = finished
    residual = {(r["variant"], r["seed"]): r["orthogonality_residual"] for r in results}
    for seed in (0, 1):
        assert residual["SimCLR + SO", seed] < residual["SimCLR", seed]
    assert residual["SimCLR", 0] != residual["SimCLR", 1]
    loaded = load_model(checkpoint=folder / "out/SimCLR-SO-seed1/last.ckpt")
    assert loaded.pretrained.method == "SimCLR"
    assert loaded.model.feature_dim == results[0]["width"] == len(results[0]["spectrum"])


def test_a_finished_cell_is_not_run_again_and_a_missing_one_is(finished, monkeypatch):
    folder, results = finished
    ran = []
    real = pretrain
    monkeypatch.setattr(module, "pretrain", lambda config: ran.append(config) or real(config))
    assert sweep(folder / "sweep.yaml", folder / "out") == results
    assert not ran
    (folder / "out/SimCLR-seed1/result.json").unlink()
    again = sweep(folder / "sweep.yaml", folder / "out")
    assert len(ran) == 1
    assert ran[0]["ckpt_path"] == "last"  # its training was over: only the measuring was missing
    for key in ("spectrum", "knn", "linear", "mlid", "orthogonality_residual"):
        assert again[2][key] == results[2][key]


def test_a_folder_of_another_configuration_is_refused(finished, capsys):
    folder, _ = finished
    words = ["sweep", str(folder / "sweep.yaml"), "--output", str(folder / "out")]
    assert main([*words, "--set", "model.temperature=0.7"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_cell_that_diverges_is_recorded_and_the_others_run(tmp_path):
    bad = {"settings": {"model": {"init_args": {"optimizer": {"learning_rate": 1e30}}}}}
    path = write(
        tmp_path,
        seeds=[0],
        methods={"bad": bad, "good": {}},
        regularizers=None,
        cells=None,
        settings={**TINY, "trainer": {**TINY["trainer"], "max_epochs": 2}},
    )
    results = sweep(path, tmp_path / "out")
    assert "failed" in results[0]
    assert "failed" not in results[1]
    assert "(1 diverged)" in (tmp_path / "out/table.md").read_text()


def test_time_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("a cell was begun"))
    assert sweep(write(tmp_path), tmp_path / "out", minutes=1e-9) == []


def test_chosen_cells_are_run_alone_and_share_the_table(tmp_path, monkeypatch):
    ran = []

    def run(cell, folder, overrides):
        ran.append((cell.variant, cell.seed))
        record = {"variant": cell.variant, "seed": cell.seed, "failed": "not run"}
        (folder / "result.json").write_text(json.dumps(record))

    monkeypatch.setattr(module, "_run", run)
    path = write(tmp_path)
    assert len(sweep(path, tmp_path / "out", only=["SimCLR + SO"])) == 2
    assert ran == [("SimCLR + SO", 0), ("SimCLR + SO", 1)]
    # As another process would: its table holds the cells of the first too.
    assert len(sweep(path, tmp_path / "out", only=["SimCLR"])) == 4
    assert ran[2:] == [("SimCLR", 0), ("SimCLR", 1)]
    with pytest.raises(ValueError, match=r"only must name some of SimCLR, SimCLR \+ SO, got 'SO'"):
        sweep(path, tmp_path / "out", only=["SO"])


def test_without_cells_every_method_meets_every_regularizer(tmp_path):
    cells = read_sweep(write(tmp_path, cells=None), seeds=[7])
    assert [c.variant for c in cells] == ["SimCLR", "SimCLR + SO", "SimSiam", "SimSiam + SO"]
    assert {c.seed for c in cells} == {c.config["seed_everything"] for c in cells} == {7}
    assert cells[1].config["model"]["init_args"]["orthogonality"]["weight"] == 1.0
    assert len({c.folder for c in cells}) == 4


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_name_methods_and_folders_that_exist(path):
    cells = read_sweep(path)
    assert len({c.folder for c in cells}) == len(cells) >= 3
    for cell in cells:
        assert cell.config["model"]["class_path"] in METHODS
        assert cell.config["data"]["class_path"] in ("Digits", "SmallImageFolder")


def test_summary_is_mean_and_sample_deviation():
    rows = [{"variant": "a", "seed": s, "rankme": v} for s, v in enumerate((1.0, 2.0, 6.0))]
    rows += [{"variant": "b", "seed": 0, "rankme": 4.0}, {"variant": "b", "failed": "nan"}]
    a, b = summarize(rows)
    assert a["rankme"] == (3.0, pytest.approx(7**0.5))
    assert (b["rankme"], b["seeds"], b["failed"]) == ((4.0, None), 1, 1)
    assert a["knn"] is None
    assert set(COLUMNS) <= set(a)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cells": [{"methods": ["X"]}]}, "method 'X' is none of SimCLR, SimSiam"),
        (
            {"cells": [{"methods": ["SimCLR"], "regularizers": ["X"]}]},
            "regularizer 'X' is none of none, SO",
        ),
        ({"methods": None}, "methods"),
        ({"seeds": []}, "seed"),
        ({"colour": "red"}, "unknown colour"),
        ({"bases": ["nowhere.yaml"]}, "nowhere.yaml"),
    ],
)
def test_bad_sweep_files_are_one_line_and_exit_2(tmp_path, capsys, changes, said):
    words = ["sweep", str(write(tmp_path, **changes)), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_bad_overrides_are_refused(tmp_path, capsys):
    assert main(["sweep", str(write(tmp_path)), "--set", "x", "--output", str(tmp_path)]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "config"),
    [
        ("data.root=/a", {"data": {"init_args": {"root": "/a"}}}),
        ("model.init_args.hidden_dim=8", {"model": {"init_args": {"hidden_dim": 8}}}),
        ("model=BYOL", {"model": "BYOL"}),
        ("trainer.max_epochs=3", {"trainer": {"max_epochs": 3}}),
        ("data.views.blur=[0, 1]", {"data": {"init_args": {"views": {"blur": [0, 1]}}}}),
    ],
)
def test_overrides_are_settings(override, config):
    assert settings_of([override]) == config


def test_numbers_without_a_point_are_numbers(tmp_path):
    """YAML 1.1 takes 1e-3 for a string."""
    path = write(tmp_path, seeds=[0], methods={"SimCLR": {}}, regularizers=None, cells=None)
    results = sweep(path, tmp_path / "out", ["model.optimizer.learning_rate=1e-3"])
    config = yaml.safe_load((tmp_path / "out/SimCLR-seed0/config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["learning_rate"] == 1e-3
    assert "failed" not in results[0]
