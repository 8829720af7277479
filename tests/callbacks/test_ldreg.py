"""LDReg by a hook gives the training of LDReg in the loss."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse.callbacks import LDRegCallback
from lightly_collapse.loss import LDRegularizer
from lightly_collapse.tracking import RepresentationHook

WEIGHT, K = 0.5, 3


class Model(pl.LightningModule):
    """Its forward returns the embedding; with `inside` the penalty is in the loss."""

    def __init__(self, inside: bool = False, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
        self.head = nn.Linear(5, 3)
        self.regularizer = LDRegularizer(WEIGHT, K) if inside else None
        self.automatic_optimization = not manual

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = (self(x) - self(x + 0.1)).square().mean() + self(x).square().mean()
        if self.regularizer:
            loss = loss + self.regularizer(*(self.backbone(v) for v in (x, x + 0.1, x)))
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def fit(model: Model, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    x = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x), batch_size=8)
    trainer = pl.Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, loader, loader)
    return trainer


def loss_scaling() -> list[Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return [MixedPrecision("16-mixed", "cpu", scaler)]


EXACT = {"precision": "64-true"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("manual", "plugins", "tolerance", "options"),
    [
        pytest.param(False, list, 1e-9, EXACT, id="automatic"),
        pytest.param(True, list, 1e-9, EXACT, id="manual"),
        pytest.param(False, list, 1e-9, {**EXACT, "accumulate_grad_batches": 2}, id="accumulated"),
        # A step, before the rounding of float16 grows with the training.
        pytest.param(False, loss_scaling, 2e-3, {"max_steps": 1}, id="loss scaling"),
    ],
)
def test_trains_as_the_penalty_in_the_loss(
    manual: bool, plugins: Callable[[], list[Any]], tolerance: float, options: dict[str, Any]
) -> None:
    ours, theirs, without = Model(manual=manual), Model(True, manual), Model(manual=manual)
    trainer = fit(ours, LDRegCallback(WEIGHT, K), plugins=plugins(), **options)
    fit(theirs, plugins=plugins(), **options)
    fit(without, plugins=plugins(), **options)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(ours.backbone[0].weight, without.backbone[0].weight, atol=1e-3)
    assert "ldreg/backbone" in trainer.callback_metrics
    assert not ours.backbone._forward_hooks


@pytest.mark.filterwarnings("ignore")
def test_warm_up() -> None:
    late, without = Model(), Model()
    fit(late, LDRegCallback(WEIGHT, K, warmup_epochs=2))
    fit(without)
    for a, b in zip(late.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_hook_in_a_plain_loop() -> None:
    model = Model()
    x = torch.randn(8, 1, 6, 6)
    with RepresentationHook(model) as representation:
        model(x)
        model(x + 1)
        with torch.no_grad():
            model(x)  # a teacher's pass
        model.eval()(x)
        views = representation.views()
        with pytest.raises(ValueError, match="must be called in training"):
            representation.views()
    model.train()
    assert [v.shape for v in views] == [(8, 5), (8, 5)]
    torch.testing.assert_close(views[1], model.backbone(x + 1))
    LDRegularizer(WEIGHT, K)(*views).backward()
    assert model.backbone[0].weight.grad is not None
    assert not model.backbone._forward_hooks


def test_of_a_sequence_the_class_token() -> None:
    torchvision = pytest.importorskip("torchvision")
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 12, 16)
    x = torch.randn(3, 3, 16, 16)
    outputs: list[Tensor] = []
    vit.encoder.register_forward_hook(lambda _, __, z: outputs.append(z))
    for tokens in ("auto", "cls", "mean"):
        with RepresentationHook(vit, "encoder", tokens) as representation:
            vit(x)
            (view,) = representation.views()
        z = outputs[-1]
        torch.testing.assert_close(view, z[:, 1:].mean(dim=1) if tokens == "mean" else z[:, 0])
    with pytest.raises(ValueError, match="one row a sample"):
        RepresentationHook(vit, "encoder", "patch")
