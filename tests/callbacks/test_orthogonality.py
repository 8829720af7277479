"""The callback gives the gradient of the Module, whatever stands around the optimizer."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse.callbacks import OrthogonalityCallback, RegularizerSchedule
from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer

KINDS = ("so", "dso", "mc", "srip", "conv")
WEIGHT = 0.03


class Model(pl.LightningModule):
    """A user's module; with `kind` the penalty is added to its loss, the first door."""

    def __init__(self, kind: str | None = None, optimizers: int = 1, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
        self.head = nn.Linear(5, 3)
        self.regularizer = kind and OrthogonalityRegularizer(self.backbone, kind, WEIGHT)
        self.optimizers_wanted = optimizers
        self.automatic_optimization = not manual
        self.options: dict[str, Any] = {}
        self.gradients: list[list[Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = self.head(self.backbone(x)).square().mean()
        if self.regularizer:
            loss = loss + self.regularizer()
        if not self.automatic_optimization:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        if self.optimizers_wanted == 1:
            return torch.optim.SGD(self.parameters(), 0.05, **self.options)
        return [
            torch.optim.SGD(self.backbone[0].parameters(), 0.05),
            torch.optim.SGD([*self.backbone[3].parameters(), *self.head.parameters()], 0.05),
        ]


def fit(model: Model, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    x = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    trainer = pl.Trainer(
        **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options},
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, DataLoader(TensorDataset(x), batch_size=4))
    return trainer


def assert_same(ours: Model, theirs: Model) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
class TestSameTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_as_the_module(self, kind: str) -> None:
        ours, theirs, without = Model(), Model(kind), Model()
        fit(ours, OrthogonalityCallback(kind, WEIGHT))
        fit(theirs)
        fit(without)
        assert_same(ours, theirs)
        assert not torch.allclose(ours.backbone[0].weight, without.backbone[0].weight, atol=1e-4)

    def test_under_gradient_accumulation(self) -> None:
        ours, theirs = Model(), Model("so")
        fit(ours, OrthogonalityCallback("so", WEIGHT), accumulate_grad_batches=2)
        fit(theirs, accumulate_grad_batches=2)
        assert_same(ours, theirs)

    def test_before_clipping(self) -> None:
        ours, theirs = Model(), Model("so")
        fit(ours, OrthogonalityCallback("so", WEIGHT), gradient_clip_val=0.1)
        fit(theirs, gradient_clip_val=0.1)
        assert_same(ours, theirs)

    def test_with_several_optimizers(self) -> None:
        ours, theirs = (Model(kind, optimizers=2, manual=True) for kind in (None, "so"))
        fit(ours, OrthogonalityCallback("so", WEIGHT))
        fit(theirs)
        assert_same(ours, theirs)

    def test_after_unscaling(self) -> None:
        ours, theirs = Model(), Model("so")
        for model, callbacks in ((ours, [OrthogonalityCallback("so", WEIGHT)]), (theirs, [])):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            plugin = MixedPrecision("16-mixed", "cpu", scaler)
            fit(model, *callbacks, plugins=[plugin])
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # of float16 activations

    def test_with_an_optimizer_that_unscales(self) -> None:
        ours, theirs = Model(), Model("so")
        for model, callbacks in ((ours, [OrthogonalityCallback("so", WEIGHT)]), (theirs, [])):
            model.options = {"fused": True}
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            plugin = MixedPrecision("16-mixed", "cpu", scaler)
            fit(model, *callbacks, plugins=[plugin])
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_under_bfloat16(self) -> None:
        ours, theirs = Model(), Model("so")
        fit(ours, OrthogonalityCallback("so", WEIGHT), precision="bf16-mixed")
        fit(theirs, precision="bf16-mixed")
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_with_a_warm_up(self) -> None:
        late, without = Model(), Model()
        fit(late, OrthogonalityCallback("so", WEIGHT, warmup_epochs=2))
        fit(without)
        assert_same(late, without)
        scheduled, theirs = Model(), Model("so")
        halved = OrthogonalityCallback("so", WEIGHT, schedule=lambda epoch: 0.5**epoch)
        fit(scheduled, halved)
        theirs_schedule = RegularizerSchedule("regularizer", schedule=lambda epoch: 0.5**epoch)
        fit(theirs, theirs_schedule)
        assert_same(scheduled, theirs)
        assert theirs.regularizer is not None
        assert theirs.regularizer.weight == WEIGHT


@pytest.mark.filterwarnings("ignore")
def test_logs_the_penalty(tmp_path: Any) -> None:
    model = Model()
    expected = sum(OrthogonalityRegularizer(model.backbone).residuals().values())
    trainer = fit(
        model,
        OrthogonalityCallback("so", WEIGHT),
        max_epochs=1,
        limit_train_batches=1,
        log_every_n_steps=1,
        logger=CSVLogger(str(tmp_path)),
    )
    assert trainer.logged_metrics["orthogonality/backbone"].item() == pytest.approx(expected)


class Thaws(Model):
    """Frozen at the start, as by BackboneFinetuning; thawed after the first epoch."""

    def on_train_epoch_start(self) -> None:
        self.backbone.requires_grad_(self.current_epoch > 0)


def test_a_frozen_target_waits_for_its_weights_to_thaw() -> None:
    ours, theirs, without = Thaws(), Thaws("so"), Thaws()
    for model in (ours, without):
        model.backbone.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"'backbone' are frozen: .*; trainable are: head"):
        fit(ours, OrthogonalityCallback("so", WEIGHT))
    theirs.regularizer, added = None, theirs.regularizer
    theirs.backbone.requires_grad_(False)
    fit(theirs, AddsAfterThawing(added))
    fit(without)
    assert_same(ours, theirs)
    assert not torch.allclose(ours.backbone[0].weight, without.backbone[0].weight, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_backbone_finetuning_leaves_norms_trainable(tmp_path: Path) -> None:
    """Its `train_bn` does by default: parameters of the target are trainable, its weights not."""
    model = Model()
    model.backbone.insert(1, nn.BatchNorm2d(6))
    head = model.head
    model.configure_optimizers = lambda: torch.optim.SGD(head.parameters(), 0.05)
    start = model.backbone[0].weight.detach().clone()
    finetuning = pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    callback = OrthogonalityCallback("so", WEIGHT)
    with pytest.warns(UserWarning, match="'backbone' are frozen"):
        trainer = fit(model, callback, finetuning, default_root_dir=tmp_path)
    assert trainer.current_epoch == 2
    assert "orthogonality/backbone" in trainer.callback_metrics
    assert not torch.equal(model.backbone[0].weight, start)


class AddsAfterThawing(pl.Callback):
    """The same gradient by hand."""

    def __init__(self, regularizer: Any) -> None:
        self.regularizer = regularizer

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if pl_module.backbone[0].weight.requires_grad:
            self.regularizer.accumulate_gradient()


@pytest.mark.filterwarnings("ignore")
def test_callbacks_of_one_target_log_apart() -> None:
    callbacks = [
        OrthogonalityCallback("so", WEIGHT, include="0"),
        OrthogonalityCallback("so", WEIGHT, include="3"),
        OrthogonalityCallback("srip", WEIGHT),
        OrthogonalityCallback("so", WEIGHT, target="head"),
    ]
    trainer = fit(Model(), *callbacks, max_epochs=1, log_every_n_steps=1)
    logged = {name for name in trainer.callback_metrics if name.startswith("orthogonality")}
    assert logged == {
        "orthogonality/backbone/so-1",
        "orthogonality/backbone/so-2",
        "orthogonality/backbone/srip",
        "orthogonality/head",
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["backbone", "backbone._orig_mod", "backbone.3"])
def test_compiled_targets(target: str) -> None:
    ours, theirs = Model(), Model()
    ours.backbone = torch.compile(ours.backbone, backend="eager")
    fit(ours, OrthogonalityCallback("so", WEIGHT, target=target))
    fit(theirs, OrthogonalityCallback("so", WEIGHT, target=target.replace("._orig_mod", "")))
    assert_same(ours, theirs)


class ClipsByHand(Model):
    """Manual optimization with the user's own clipping, to nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.head(self.backbone(x)).square().mean()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1e-12, gradient_clip_algorithm="value")
        optimizer.step()
        return loss


@pytest.mark.filterwarnings("ignore")
def test_manual_clipping_comes_before_the_penalty_as_documented() -> None:
    ours, still = ClipsByHand(manual=True), ClipsByHand(manual=True)
    fit(ours, OrthogonalityCallback("so", WEIGHT), max_epochs=1, limit_train_batches=1)
    fit(still, max_epochs=1, limit_train_batches=1)
    expected = OrthogonalityRegularizer(Model().backbone, "so", WEIGHT)
    expected.accumulate_gradient()
    step = expected._weights[0].layer.weight.grad * 0.05
    torch.testing.assert_close(still.backbone[0].weight - ours.backbone[0].weight, step)


@pytest.mark.filterwarnings("ignore")
class TestBadInput:
    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("encoder", r"^target 'encoder' is no module of Model; there are: backbone, head$"),
            ("backbone.7", r"there are: backbone\.0, backbone\.1, backbone\.2, backbone\.3$"),
            ("backbone.0.conv", r"backbone\.0 has no submodules$"),
        ],
    )
    def test_target(self, target: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(Model(), OrthogonalityCallback(target=target))

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match=r"^kind must be one of"):
            fit(Model(), OrthogonalityCallback(kind="hard"))
        with pytest.raises(ValueError, match=r"^warmup_epochs must not be negative, got -1"):
            OrthogonalityCallback(warmup_epochs=-1)
        with pytest.raises(ValueError, match=r"^schedule must give finite factors.*got -1\.0"):
            fit(Model(), OrthogonalityCallback(schedule=lambda _: -1))

    def test_schedule_of_what_has_no_number_for_a_weight(self) -> None:
        with pytest.raises(ValueError, match=r"^target 'head' must be a regularizer .* got Linear"):
            fit(Model(), RegularizerSchedule("head"))


class WithLDReg(Model):
    def __init__(self) -> None:
        super().__init__()
        self.ldreg = LDRegularizer(weight=0.5, k=2)
        self.weights: list[float] = []
        self.fail = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        if self.fail and self.current_epoch:
            raise RuntimeError("out of memory")
        z = self.backbone(x)
        self.weights.append(self.ldreg.weight)
        return self.head(z).square().mean() + self.ldreg(z)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fail", [False, True])
def test_published_warm_up_of_ldreg(fail: bool) -> None:
    model = WithLDReg()
    model.fail = fail
    schedule = RegularizerSchedule("ldreg", warmup_epochs=1)
    if fail:
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(model, schedule)
    else:
        fit(model, schedule)
    assert model.weights == ([0.0] * 4 if fail else [0.0] * 4 + [0.5] * 4)
    assert model.ldreg.weight == 0.5  # its own again, after an error too
