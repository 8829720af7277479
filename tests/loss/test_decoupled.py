"""The strength that needs no sweep: steps towards orthonormal filters after the optimizer's."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse.callbacks import OrthogonalityCallback
from lightly_collapse.functional.orthogonality import orthogonality_penalty, towards_orthonormal
from lightly_collapse.loss import OrthogonalityRegularizer
from lightly_collapse.loss.orthogonality import DECOUPLED_RATE
from tests.helpers import gradient, leaf, normal, with_spectrum


def auto(module):
    return OrthogonalityRegularizer(module, weight="auto")


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (2, 4, 7)])
def test_the_direction_is_a_quarter_of_the_gradient(shape):
    w = leaf(normal(*shape))
    matrices = w if w.ndim == 3 else w[None]
    penalty = sum(orthogonality_penalty(m, "so") for m in matrices)
    torch.testing.assert_close(4 * towards_orthonormal(w.detach()), gradient(penalty, w))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_singular_values_move_by_newton_schulz_and_vectors_stay(shape):
    s = torch.tensor([1.6, 1.2, 1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
    layer = linear(with_spectrum(s, *shape))
    auto(layer).decoupled_step(rate=0.5)
    moved = s - 0.25 * (s**2 - 1) * s
    torch.testing.assert_close(layer.weight.data, with_spectrum(moved, *shape))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        nn.Conv1d(3, 5, 3).bfloat16(),
        nn.MultiheadAttention(8, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_layer_gets_nearer(layer):
    regularizer = auto(layer)
    before = sum(regularizer.residuals().values())
    for _ in range(60):
        regularizer.decoupled_step()
    assert sum(regularizer.residuals().values()) < 0.2 * before


def test_far_from_orthonormal_it_does_not_overshoot():
    layer = linear(1e6 * normal(4, 8))
    regularizer = auto(layer)
    for _ in range(300):
        regularizer.decoupled_step(rate=1.0)
        assert layer.weight.isfinite().all()
        assert layer.weight.norm() < 1e8


def test_queries_keys_and_values_apart():
    attention = nn.Linear(8, 24, bias=False)
    model = nn.ModuleDict({"qkv": attention})
    regularizer = OrthogonalityRegularizer(model, weight="auto", split_qkv=True)
    for _ in range(200):
        regularizer.decoupled_step(rate=0.5)
    for part in attention.weight.detach().split(8):
        torch.testing.assert_close(part @ part.T, torch.eye(8), atol=1e-4, rtol=0)


def test_what_is_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="for the kind so alone, got srip"):
        OrthogonalityRegularizer(layer, kind="srip", weight="auto")
    with pytest.raises(ValueError, match="or auto, got 'much'"):
        OrthogonalityRegularizer(layer, weight="much")
    with pytest.raises(ValueError, match="attach\\(\\) the regularizer"):
        auto(layer)()
    with pytest.raises(ValueError, match="attach\\(\\) the regularizer"):
        auto(layer).accumulate_gradient()
    with pytest.raises(ValueError, match="hold its weights themselves"):
        auto(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))).decoupled_step()


class TestAttached:
    def stepped(self, **group):
        layer = linear(normal(4, 8))
        wanted = copy.deepcopy(layer)
        optimizer = torch.optim.SGD([{"params": layer.parameters(), **group}], lr=0.1)
        handle = auto(layer).attach(optimizer)
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        wanted.weight.data -= optimizer.param_groups[0]["lr"]
        return layer, wanted, optimizer, handle

    @pytest.mark.parametrize(
        ("group", "share"),
        [
            ({}, 1.0),
            ({"initial_lr": 0.4}, 0.25),
            ({"initial_lr": 0.01, "max_lr": 0.2}, 0.5),
            ({"initial_lr": 0.05}, 1.0),
        ],
    )
    def test_by_the_schedule(self, group, share):
        layer, wanted, _, _ = self.stepped(**group)
        auto(wanted).decoupled_step(DECOUPLED_RATE * share)
        torch.testing.assert_close(layer.weight, wanted.weight)

    def test_until_it_is_removed_and_for_its_own_parameters(self):
        layer, _, optimizer, handle = self.stepped()
        handle.remove()
        layer.weight.grad = torch.zeros_like(layer.weight)
        before = layer.weight.clone()
        optimizer.step()
        assert torch.equal(layer.weight, before)
        other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
        auto(layer).attach(other)
        other.step()
        assert torch.equal(layer.weight, before)

    def test_a_step_that_a_scaler_skips_is_not_followed(self):
        layer = linear(normal(4, 8, dtype=torch.float32))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        auto(layer).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        before = layer.weight.clone()
        scaler.scale(layer(torch.full((1, 8), torch.inf)).sum()).backward()
        scaler.step(optimizer)
        assert torch.equal(layer.weight, before)


class Model(pl.LightningModule):
    def __init__(self, attached=False):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.attached = attached

    def training_step(self, batch, batch_idx):
        return self.backbone(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        if self.attached:
            auto(self.backbone).attach(optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fit(model, *callbacks, checkpoint=None, **options):
    x = normal(32, 6, dtype=torch.float32)
    trainer = pl.Trainer(
        **{"max_epochs": 2, "enable_checkpointing": False, **options},
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, DataLoader(TensorDataset(x), batch_size=8), ckpt_path=checkpoint)
    return trainer


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
class TestCallback:
    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_as_attached_by_hand(self, accumulated):
        ours, theirs, without = Model(), Model(attached=True), Model()
        fit(ours, OrthogonalityCallback(weight="auto"), accumulate_grad_batches=accumulated)
        fit(theirs, accumulate_grad_batches=accumulated)
        fit(without, accumulate_grad_batches=accumulated)
        assert same(ours, theirs)
        assert not same(ours, without)

    def test_resumes_bit_by_bit(self, tmp_path):
        whole, part = Model(), Model()
        fit(whole, OrthogonalityCallback(weight="auto"))
        trainer = fit(part, OrthogonalityCallback(weight="auto"), max_epochs=1)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        resumed = Model()
        fit(resumed, OrthogonalityCallback(weight="auto"), checkpoint=tmp_path / "a.ckpt")
        assert same(whole, resumed)

    def test_the_optimizer_is_left_alone_afterwards(self):
        trainer = fit(Model(), OrthogonalityCallback(weight="auto"))
        assert not trainer.optimizers[0]._optimizer_step_post_hooks

    def test_warm_up(self):
        ours, without = Model(), Model()
        fit(ours, OrthogonalityCallback(weight="auto", warmup_epochs=2))
        fit(without)
        assert same(ours, without)
