"""The pretrain command: what it writes, how it resumes, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import yaml
from pytorch_lightning import Callback

from lightly_collapse.cli import main
from lightly_collapse.io.checkpoints import read_checkpoint
from lightly_collapse.pretrain.checks import DATA, METHODS, OPTIONS
from lightly_collapse.pretrain.command import pretrain

SMALL = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--data", "Digits", "--data.batch_size", "32", "--data.train_images", "64"),
    *("--data.bank_images", "64"),
]
NARROW = ["--model.backbone.stem", "cifar", "--model.backbone.width", "4"]
VIT = [
    *("--model.backbone.name", "vit_tiny"),
    *("--model.backbone.image_size", "16", "--model.backbone.patch_size", "4"),
]


def weights(path):
    return read_checkpoint(path)["state_dict"]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def simclr(output, epochs, *more):
    return [
        *("--model", "SimCLR", *SMALL, *NARROW),
        *("--trainer.max_epochs", str(epochs), "--output", str(output), *more),
    ]


def test_the_options_known_before_any_import_are_those_of_the_parser(capsys):
    with pytest.raises(SystemExit):
        pretrain(["--help"])
    listed = {*re.findall(r"--(\w+)", capsys.readouterr().out)}
    assert listed - {"help", "print_config"} == {*OPTIONS}


ONE_BATCH = """
# What is imported first decides in which order the parser tries types.
from torchvision.models import resnet18
from lightly_collapse.functional.tokens import gram_drift
from lightly_collapse.io.image_batches import ImageFolderLoader
from lightly_collapse.report import CollapseReport
import json, sys
from lightly_collapse.pretrain.command import pretrain
words = json.loads(sys.argv[1])
config = {
    "model": {"class_path": "SimCLR", "init_args": {
        "backbone": {"stem": "cifar", "width": 4}, "optimizer": {"warmup_epochs": 0}
    }},
    "data": {"class_path": "Digits", "init_args": {"batch_size": 32, "train_images": 64}},
    "trainer": {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu"},
    "output": sys.argv[2],
}
print(pretrain(words).global_step, pretrain(config).global_step)
"""


@pytest.mark.slow
def test_one_batch_is_not_all_batches(tmp_path):
    words = simclr(tmp_path / "words", 1, "--trainer.limit_train_batches", "1")
    words += ["--model.optimizer.warmup_epochs", "0"]
    done = subprocess.run(
        [sys.executable, "-c", ONE_BATCH, json.dumps(words), str(tmp_path / "mapping")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["1 1"], done.stderr[-2000:]


def test_writes_the_checkpoint_with_its_resolved_configuration(tmp_path):
    pretrain(simclr(tmp_path, 1, "--model.temperature", "0.3"))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["model"]["init_args"]["temperature"] == 0.3
    assert config["model"]["init_args"]["optimizer"]["name"] == "sgd"  # a default, resolved
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["pretrain"]["method"] == "SimCLR"
    assert checkpoint["pretrain"]["backbone"]["width"] == 4
    assert checkpoint["epoch"] == 0
    assert checkpoint["global_step"] == 2
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "last.ckpt", "tensorboard"]


def test_without_a_logger_the_monitor_writes_into_the_output_folder(tmp_path, monkeypatch):
    output, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monitor = "--trainer.callbacks+=lightly_collapse.callbacks.CollapseMonitor"
    pretrain(simclr(output, 1, "--trainer.logger", "false", monitor))
    assert (output / "collapse.csv").read_text().startswith("epoch")
    assert list(elsewhere.iterdir()) == []


def test_the_written_configuration_gives_the_same_run(tmp_path):
    pretrain(simclr(tmp_path / "a", 1, "--seed_everything", "5"))
    pretrain(["--config", str(tmp_path / "a/config.yaml"), "--output", str(tmp_path / "b")])
    assert_same(weights(tmp_path / "a/last.ckpt"), weights(tmp_path / "b/last.ckpt"))
    pretrain(simclr(tmp_path / "c", 1, "--seed_everything", "6"))
    a, c = (weights(tmp_path / run / "last.ckpt") for run in "ac")
    assert not torch.equal(a["backbone.conv1.weight"], c["backbone.conv1.weight"])


# MoCo has a queue, and DINO a centre, that must be taken up again as well.
@pytest.mark.parametrize(
    "method",
    [
        ["SimCLR", "--model.ldreg", '{"k": 8}', "--model.orthogonality", '{"weight": 1e-3}'],
        ["SimCLR", "--model.orthogonality", '{"kind": "srip", "weight": 0.1}'],
        ["MoCo", "--model.queue_size", "96"],
        ["DINO", "--model.output_dim", "32", "--model.hidden_dim", "16"],
        pytest.param(
            ["IBOT", "--model.output_dim", "32", "--model.hidden_dim", "16"],
            marks=pytest.mark.slow,
            id="IBOT 16",
        ),
        ["MoCoV3", "--model.output_dim", "8", "--model.hidden_dim", "16"],
        ["NNCLR", "--model.queue_size", "96", "--model.prediction_dim", "16"],
        ["NNBYOL", "--model.queue_size", "96", "--model.hidden_dim", "16"],
        ["TiCo", "--model.output_dim", "8", "--model.hidden_dim", "16"],
        ["DCL", "--model.output_dim", "8"],
        ["WMSE", "--model.output_dim", "4", "--model.whitening_size", "16"],
        ["FroSSL", "--model.output_dim", "8", "--model.hidden_dim", "16"],
        ["MMCR", "--model.output_dim", "8", "--model.hidden_dim", "16"],
        ["LeJEPA", "--model.output_dim", "8", "--model.hidden_dim", "16"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_run_resumed_after_an_epoch_ends_with_the_weights_of_one_that_was_not(tmp_path, method):
    # The schedule is that of two epochs in both: the first run is stopped, not shortened.
    backbone = VIT if method[0] == "IBOT" else NARROW
    words = ["--model", *method, *SMALL, *backbone, "--trainer.max_epochs", "3"]
    pretrain([*words, "--output", str(tmp_path / "whole")])
    stop = {"class_path": f"{__name__}.StopAfter", "init_args": {"epoch": 0}}
    with pytest.raises(StoppedError):
        pretrain([*words, "--output", str(tmp_path / "cut"), "--trainer.callbacks", f"[{stop}]"])
    assert read_checkpoint(tmp_path / "cut/last.ckpt")["epoch"] == 0
    pretrain([*words, "--output", str(tmp_path / "cut"), "--ckpt_path", "last"])
    assert_same(weights(tmp_path / "whole/last.ckpt"), weights(tmp_path / "cut/last.ckpt"))


class StoppedError(RuntimeError):
    pass


class StopAfter(Callback):
    """Breaks off in the middle of the epoch after the given one."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch > self.epoch:
            raise StoppedError


def test_killed_in_mid_epoch_and_resumed_gives_the_weights_of_an_unkilled_run(tmp_path):
    words = ["--model", "SimCLR", *SMALL, *NARROW, "--trainer.max_epochs", "6"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "lightly_collapse.cli", "pretrain", *words, "--output", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        limit = time.monotonic() + 240
        while not (killed / "last.ckpt").exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < limit
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_checkpoint(killed / "last.ckpt")["epoch"] < 5
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain([*words, "--output", str(killed), "--ckpt_path", "last"])
        pretrain([*words, "--output", str(tmp_path / "whole")])
    finally:
        torch.set_num_threads(threads)
    assert_same(weights(tmp_path / "whole/last.ckpt"), weights(killed / "last.ckpt"))


def test_a_loss_that_is_not_finite_stops_with_step_method_and_checkpoint(tmp_path, capsys):
    words = simclr(tmp_path, 3)
    assert main(["pretrain", *words, "--trainer.max_epochs", "1"]) == 0
    before = (tmp_path / "last.ckpt").read_bytes()
    capsys.readouterr()
    rate = ["--model.optimizer.learning_rate", "1e30", "--ckpt_path", "last"]
    poison = f"[{{'class_path': '{__name__}.Poison'}}]"
    assert main(["pretrain", *words, *rate, "--trainer.callbacks", poison]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "SimCLR" in error
    assert "at step 3 of epoch 1" in error
    assert str(tmp_path / "last.ckpt") in error
    assert (tmp_path / "last.ckpt").read_bytes() == before


class Poison(Callback):
    """Makes a weight NaN after the first step of the second epoch."""

    def on_train_batch_end(self, trainer, method, *_):
        if trainer.current_epoch == 1:
            method.backbone.conv1.weight.data.view(-1)[0] = torch.nan


def test_weights_that_are_not_finite_are_not_written(tmp_path, capsys):
    poison = f"[{{'class_path': '{__name__}.PoisonLast'}}]"
    words = simclr(tmp_path, 2, "--trainer.callbacks", poison, "--trainer.limit_val_batches", "0")
    assert main(["pretrain", *words]) == 2
    assert "conv1.weight holds NaN" in capsys.readouterr().err
    assert not (tmp_path / "last.ckpt").exists()


class PoisonLast(Callback):
    """Makes a weight NaN after the last step of an epoch, which no loss sees."""

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if batch_idx == 1:
            method.backbone.conv1.weight.data.view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "Nonsense"], [*METHODS, "'Nonsense'"]),
        (["--model", "SimCLR", "--data", "Nonsense"], [*DATA, "'Nonsense'"]),
        (
            ["--model", "SimCLR", "--model.backbone.name", "resnet19"],
            ["resnet18", "vit_base", "timm/", "'resnet19'"],
        ),
        (["--model", "SimCLR", "--model.nonsense", "3"], ["nonsense"]),
        (["--model", "SimCLR", "--nonsense", "3"], ["--nonsense"]),
        (["--model", "SimCLR", "--model.temperature", "hot"], ["temperature", "hot"]),
        (["--model", "SimCLR", "--data.views.jitter", "7"], ["views.jitter", "in [0, 1]", "got 7"]),
        (["--model", "SimCLR", "--model.ldreg", '{"k": 64}'], ["ldreg.k", "64 rows", "32"]),
        (["--model", "SimCLR", "--data.batch_size", "100"], ["batch_size", "64", "100"]),
        (
            ["--model", "SimCLR", "--model.optimizer.warmup_epochs", "2"],
            ["warmup_epochs", "2 steps", "got 2", "4 steps"],
        ),
        (["--model", "SimCLR", "--data.train_images", "9999"], ["train_images", "1257", "9999"]),
        (["--model", "SimCLR", "--ckpt_path", "last"], ["last.ckpt", "does not exist"]),
        (
            ["--model", "SimCLR", "--model.orthogonality", '{"kind": "x"}'],
            ["model.orthogonality.kind", "srip", "x"],
        ),
        (["--model", "SimCLR", "--trainer.max_epochs", "-1"], ["max_epochs", "max_steps"]),
        (["--model", "SimCLR", "--trainer.accelerator", "gpu"], ["trainer", "gpu"]),
        (["--model", "SimCLR", "--trainer.devices", "0"], ["trainer.devices", "got 0"]),
        (["--model", "SimCLR", "--trainer.devices", "-1"], ["trainer.devices", "got -1"]),
        (["--model", "SimCLR", "--trainer.max_epochs", "-5"], ["trainer.max_epochs", "-5"]),
        (["--model", "SimCLR", "--trainer.profiler", "no"], ["trainer.profiler", "simple", "no"]),
        (
            ["--model", "SimCLR", "--trainer.accumulate_grad_batches", "0"],
            ["trainer.accumulate_grad_batches", "at least 1", "got 0"],
        ),
        (
            ["--model", "SimCLR", "--trainer.val_check_interval", "0"],
            ["trainer.val_check_interval", "positive"],
        ),
        (
            ["--model", "SimCLR", "--trainer.check_val_every_n_epoch", "0"],
            ["trainer.check_val_every_n_epoch", "at least 1"],
        ),
        (
            ["--model", "SimCLR", "--trainer.limit_train_batches", "0"],
            ["trainer.limit_train_batches", "positive"],
        ),
        (["--model", "SimCLR", "--data.image_size", "-3"], ["data.image_size", "8", "-3"]),
        (["--model", "SimCLR", "--seed_everything", "-1"], ["seed_everything", "-1"]),
        (["--model", "SimCLR", "--seed_everything", "1" + "0" * 23], ["seed_everything"]),
        (["--model", "MAE"], ["ViT", "resnet18"]),
        (["--model", "DirectCLR"], ["loss_dim", "32", "360"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "--list-configs"]),
        (["--config", "digits-resnet18-simclrr"], ["digits-resnet18-simclr,"]),
        (["--config"], ["--config"]),
        ([], ["model"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_2_before_training(tmp_path, capsys, words, said):
    # Options of the method come after its name.
    name = words[:2] if "--model" in words else []
    arguments = [
        *name,
        *SMALL,
        "--trainer.max_epochs",
        "1",
        *(NARROW if name else []),
        *words[len(name) :],
    ]
    assert main(["pretrain", *arguments, "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith("lightly-collapse pretrain: error: ")
    for word in said:
        assert word in line
    assert len(line) < 400
    assert not (tmp_path / "out/last.ckpt").exists()


@pytest.mark.parametrize("data", ["SmallImageFolder", "ImageFolder", "LightlyFolder"])
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "missing"])
def test_a_folder_without_images_is_refused(tmp_path, capsys, data, empty):
    root = tmp_path / "images"
    if empty:
        (root / "train/cat").mkdir(parents=True)
        (root / "val/cat").mkdir(parents=True)
    words = ["--model", "SimCLR", *NARROW, *SMALL[:8], "--data", data, "--data.root", str(root)]
    assert main(["pretrain", *words, "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "data.root" in line
    assert str(root) in line


def test_a_checkpoint_of_another_method_or_backbone_is_refused(tmp_path, capsys):
    pretrain(simclr(tmp_path, 1))
    for words, said in (
        (["--model", "SimSiam", *SMALL, *NARROW], "is of the method SimCLR, not SimSiam"),
        (["--model", "SimCLR", *SMALL, *NARROW[:2], "--model.backbone.width", "8"], "width 4"),
    ):
        more = ["--output", str(tmp_path), "--ckpt_path", "last"]
        assert main(["pretrain", *words, *more]) == 2
        assert said in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(tmp_path, capsys):
    pretrain(simclr(tmp_path, 1))
    before = (tmp_path / "last.ckpt").read_bytes()
    assert main(["pretrain", *simclr(tmp_path, 1)]) == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_print_config_prints_the_resolved_configuration(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *simclr(tmp_path, 1), "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["backbone"]["width"] == 4


def test_a_run_resumed_with_more_epochs_follows_the_longer_schedule(tmp_path):
    pretrain(simclr(tmp_path, 1))
    before = weights(tmp_path / "last.ckpt")
    trainer = pretrain(simclr(tmp_path, 3, "--ckpt_path", "last"))
    assert trainer.global_step == 6
    after = weights(tmp_path / "last.ckpt")
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_half_precision_that_the_processor_emulates_is_said(
    tmp_path, monkeypatch, capability, warned
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    words = simclr(tmp_path, 1, "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "1")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pretrain(words)
    assert any("emulated on this processor" in str(w.message) for w in seen) is warned
