"""The monitor: what it logs, that it leaves training alone, and that its hooks come off."""

import csv
import math
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse import functional
from lightly_collapse.callbacks import CollapseMonitor
from lightly_collapse.tracking import CollapseAlarm, CollapseError

KEYS = {
    "rankme",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "nesum",
    "condition_number",
    "collapsed_dimensions",
    "alpha_req",
    "mlid",
    "two_nn",
    "uniformity",
    "lid_rows",
    "lid_k",
    "dimensions",
    "rows",
    "dropped",
}


def loader(n=96, seed=0, batch_size=32):
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x), batch_size=batch_size)


class Siamese(pl.LightningModule):
    """Two noisy views through a backbone with dropout, so that random numbers are drawn."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.projection_head = nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        x = batch[0]
        z0, z1 = (
            self.projection_head(self.backbone(x + 0.1 * torch.randn_like(x))) for _ in range(2)
        )
        loss = (z0 - z1).square().mean() + (z0.std(dim=0) - 1).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Validated(Siamese):
    def validation_step(self, batch, batch_idx):
        self.projection_head(self.backbone(batch[0]))


class Failing(Siamese):
    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("on purpose")
        return super().training_step(batch, batch_idx)


def fit(module, folder, *callbacks, val=None, **settings):
    settings = {"max_epochs": 2, "logger": False, **settings}
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, loader(), val)
    return trainer


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def hooks_of(module):
    return [name for name, m in module.named_modules() if m._forward_hooks]


@pytest.mark.parametrize("module_class", [Siamese, Validated])
def test_scalars_and_a_row_an_epoch(tmp_path, module_class):
    module = module_class()
    layers = ("backbone", "backbone.0", "projection_head")
    val = loader(seed=1) if module_class is Validated else None
    trainer = fit(module, tmp_path, CollapseMonitor(layers, lid_k=5), val=val)
    for layer in layers:
        for key in KEYS:
            assert f"collapse/{layer}/{key}" in trainer.callback_metrics
    rows = rows_of(tmp_path / "collapse.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert set(rows[0]) == {"epoch", "step"} | {f"{n}/{k}" for n in layers for k in KEYS}
    # Two views in training; the sanity check before training does not count in validation.
    assert float(rows[0]["backbone/rows"]) == (192 if val is None else 96)
    assert all(math.isfinite(float(v)) for row in rows for v in row.values())


def test_validation_values_are_those_of_the_trained_encoder(tmp_path):
    module = Validated()
    trainer = fit(module, tmp_path, CollapseMonitor(tokens="all"), val=loader(seed=1))
    with torch.no_grad():
        z = torch.cat([module.eval().backbone(x) for (x,) in loader(seed=1)])
    logged = {k.split("/")[-1]: float(v) for k, v in trainer.callback_metrics.items()}
    s = functional.singular_values(z, center=True)
    assert logged["rankme"] == pytest.approx(float(functional.rankme(z)), rel=1e-5)
    assert logged["effective_rank"] == pytest.approx(float(functional.effective_rank(s)), rel=1e-5)
    mlid = functional.geometric_mean(functional.lid_mom(z, k=20))
    assert logged["mlid"] == pytest.approx(float(mlid), rel=1e-4)


@pytest.mark.parametrize("monitor_first", [False, True])
@pytest.mark.parametrize("module_class", [Siamese, Validated])
def test_early_stopping_on_a_collapse_metric(tmp_path, module_class, monitor_first):
    stop = EarlyStopping("collapse/backbone/rankme", mode="max", patience=1, min_delta=1e6)
    monitor = CollapseMonitor(lid_k=5)
    callbacks = [monitor, stop] if monitor_first else [stop, monitor]
    val = loader(seed=1) if module_class is Validated else None
    trainer = fit(module_class(), tmp_path, *callbacks, val=val, max_epochs=9)
    assert trainer.current_epoch == 2  # the first sets the mark, the second does not pass it


@pytest.mark.parametrize("module_class", [Siamese, Validated])
def test_training_is_bit_identical(tmp_path, module_class):
    states = []
    for monitors in ([], [CollapseMonitor(("backbone", "projection_head"), tokens="all")]):
        pl.seed_everything(3, verbose=False)
        module = module_class()
        val = loader(seed=1) if module_class is Validated else None
        fit(module, tmp_path, *monitors, val=val)
        states.append((module.state_dict(), torch.rand(1)))
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name
    assert torch.equal(states[0][1], states[1][1])  # nor was a random number drawn


def test_no_hook_is_left(tmp_path):
    module = Siamese()
    fit(module, tmp_path, CollapseMonitor(lid_k=5))
    assert not hooks_of(module)
    failing = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(failing, tmp_path, CollapseMonitor(lid_k=5))
    assert not hooks_of(failing)


def test_every_n_epochs_and_a_second_fit(tmp_path):
    monitor = CollapseMonitor(lid_k=5, every_n_epochs=2, dirpath=tmp_path / "elsewhere")
    fit(Siamese(), tmp_path, monitor, max_epochs=4)
    assert [r["epoch"] for r in rows_of(tmp_path / "elsewhere" / "collapse.csv")] == ["0", "2"]
    fit(Siamese(), tmp_path, monitor, max_epochs=1)
    assert [r["epoch"] for r in rows_of(tmp_path / "elsewhere" / "collapse.csv")] == ["0"]


def test_resuming_keeps_the_rows_before(tmp_path):
    module = Siamese()
    trainer = fit(module, tmp_path, CollapseMonitor(lid_k=5), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[CollapseMonitor(lid_k=5)],
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    again.fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [r["epoch"] for r in rows_of(tmp_path / "collapse.csv")] == ["0", "1", "2"]


class Images(Logger):
    """Takes images as the Weights & Biases logger does."""

    def __init__(self):
        super().__init__()
        self.images = []

    name = "images"
    version = 0

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))


def test_figures_go_to_loggers_that_take_them(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    images, board = Images(), TensorBoardLogger(tmp_path)
    fit(Siamese(), tmp_path, CollapseMonitor(lid_k=5), logger=[board, images])
    assert [(key, step) for key, _, step in images.images] == [
        ("collapse/backbone/spectrum", 3),
        ("collapse/backbone/spectrum", 6),
    ]
    assert images.images[0][1][0].size[0] > 100  # a PIL image, which every logger of images takes
    events = events.EventAccumulator(board.log_dir)
    events.Reload()
    assert "collapse/backbone/spectrum" in events.Tags()["images"]
    assert "collapse/backbone/rankme" in events.Tags()["scalars"]
    assert len(rows_of(tmp_path / "lightning_logs" / "version_0" / "collapse.csv")) == 2


class Collapsed(Siamese):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.dead = nn.Linear(8, 4)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)

    def training_step(self, batch, batch_idx):
        z = self.backbone(batch[0])
        self.dead(z.detach())
        return self.projection_head(z).square().mean()


def test_what_cannot_be_measured_is_nan_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="cannot be computed") as warned:
        trainer = fit(Collapsed(), tmp_path, CollapseMonitor(("dead", "unused"), lid_k=5))
    messages = [str(w.message) for w in warned]
    assert sum("dead: rankme" in m and "all zero" in m for m in messages) == 1  # of two epochs
    assert any("forward of unused was never called" in m for m in messages)
    assert math.isnan(trainer.callback_metrics["collapse/dead/rankme"])
    # Of what was never called there is nothing to log.
    assert not any("unused" in name for name in trainer.callback_metrics)
    assert not any("unused" in name for name in rows_of(tmp_path / "collapse.csv")[0])


class Encoding(Siamese):
    """Calls the parts of the backbone, as the examples of MAE and iBOT do."""

    def training_step(self, batch, batch_idx):
        x = batch[0]
        for part in self.backbone:
            x = part(x)
        return self.projection_head(x).square().mean()


def test_early_stopping_says_what_is_missing_where_forward_is_never_called(tmp_path):
    stop = EarlyStopping("collapse/backbone/rankme", mode="max")
    with (
        pytest.warns(UserWarning, match=r"forward of backbone was never called; .*backbone\.0"),
        pytest.raises(RuntimeError, match="`collapse/backbone/rankme` which is not avail"),
    ):
        fit(Encoding(), tmp_path, CollapseMonitor(lid_k=5), stop)
    stop = EarlyStopping("collapse/backbone/rankme", mode="max", strict=False)
    with pytest.warns(UserWarning, match="never called"):
        trainer = fit(Encoding(), tmp_path, CollapseMonitor(lid_k=5), stop)
    assert trainer.current_epoch == 2


def test_readings_by_steps(tmp_path):
    board = Numbers()
    monitor = CollapseMonitor(("backbone", "projection_head"), every_n_steps=2, lid_k=5)
    trainer = fit(Siamese(), tmp_path, monitor, logger=[board])
    assert [step for step, _ in board.logged] == [2, 4, 6]
    logged = board.logged[-1][1]
    assert logged["collapse/backbone/rows"] == 128  # two steps of two views of 32
    assert "collapse/backbone/rankme" in trainer.callback_metrics
    assert [row["step"] for row in rows_of(tmp_path / "collapse.csv")] == ["2", "4", "6"]
    assert monitor.line.startswith("backbone: rank ")
    accumulated = Numbers()
    fit(
        Siamese(),
        tmp_path,
        CollapseMonitor(every_n_steps=1, lid_k=5),
        logger=[accumulated],
        accumulate_grad_batches=3,
    )
    assert [step for step, _ in accumulated.logged] == [1, 2]  # optimizer steps, not batches
    assert accumulated.logged[0][1]["collapse/backbone/rows"] == 192


class Numbers(Logger):
    """Keeps what the monitor logs."""

    name = "numbers"
    version = 0
    save_dir = None

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("collapse/") for name in metrics):
            self.logged.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Picky(Images):
    """As a logger that wants another type of image."""

    def log_image(self, image, key, **kwargs):
        raise TypeError("expected an array")


class Experiment:
    def __init__(self):
        self.figures = []

    def log_figure(self, run_id, figure, artifact_file):
        self.figures.append((run_id, artifact_file))


class MLflowLike(Images):
    """As Lightning's MLFlowLogger: no log_image, an experiment and the id of its run."""

    log_image = property()
    run_id = "run"

    def __init__(self):
        super().__init__()
        self.client = Experiment()

    @property
    def experiment(self):
        return self.client


def test_no_logger_ends_a_run(tmp_path):
    mlflow = MLflowLike()
    with pytest.warns(UserWarning, match="Picky does not take the spectrum: expected") as warned:
        trainer = fit(Siamese(), tmp_path, CollapseMonitor(lid_k=5), logger=[Picky(), mlflow])
    assert trainer.current_epoch == 2
    assert sum("Picky" in str(w.message) for w in warned) == 1
    assert mlflow.client.figures == [
        ("run", "collapse/backbone/spectrum/3.png"),
        ("run", "collapse/backbone/spectrum/6.png"),
    ]


class Down(Numbers):
    """As a logger whose server is down."""

    name = "down"

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("collapse/") for name in metrics):
            raise ConnectionError("no route to host")

    def log_image(self, key, images, **kwargs):
        raise ConnectionError("no route to host")


def test_a_logger_that_is_down_ends_no_run(tmp_path):
    numbers = Numbers()
    with pytest.warns(UserWarning, match="Down does not take the") as warned:
        trainer = fit(
            Siamese(), tmp_path, CollapseMonitor(every_n_steps=2, lid_k=5), logger=[Down(), numbers]
        )
    assert trainer.global_step == 6
    assert [step for step, _ in numbers.logged] == [2, 4, 6]
    messages = {str(w.message) for w in warned if "Down" in str(w.message)}
    assert messages == {
        f"Down does not take the {what}: no route to host" for what in ("readings", "spectrum")
    }


def test_the_alarm(tmp_path):
    alarm = CollapseAlarm(raise_on_alarm=True)
    with pytest.raises(CollapseError, match="dead has collapsed"), pytest.warns(match="cannot"):
        fit(Collapsed(), tmp_path, CollapseMonitor(("dead",), lid_k=5, alarm=alarm))
    module = Collapsed()
    with pytest.warns(UserWarning, match="dead has collapsed: all rows are equal"):
        fit(module, tmp_path, CollapseMonitor("dead", lid_k=5, alarm=CollapseAlarm()))
    assert not hooks_of(module)


def test_no_page_is_loaded_before_a_figure_is_drawn():
    code = "import sys, lightly_collapse.callbacks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Lightning and torchmetrics load rich, jinja2 and matplotlib themselves where they can.
    assert "lightly_collapse.tracking" in done.stdout.split()
    assert "lightly_collapse.report" not in done.stdout


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        CollapseMonitor(every_n_epochs=0)
    with pytest.raises(
        ValueError, match="tokens must be one of auto, cls, patch, mean, all, got 'some'"
    ):
        CollapseMonitor(tokens="some")
    with pytest.raises(ValueError, match="got 'backbon'; there are backbone"):
        fit(Siamese(), tmp_path, CollapseMonitor("backbon"))
    with pytest.raises(ValueError, match="at least one layer"):
        CollapseMonitor(())


def test_an_alarm_that_stops_ends_the_fit(tmp_path):
    module = Collapsed()
    alarm = CollapseAlarm(stop_on_alarm=True)
    with pytest.warns(UserWarning, match="dead has collapsed"):
        trainer = fit(
            module, tmp_path, CollapseMonitor(("dead",), lid_k=5, alarm=alarm), max_epochs=3
        )
    assert trainer.current_epoch < 3
