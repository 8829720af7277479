"""transformers' `Trainer`: frozen weights, `auto`, scaled gradients, interruptions."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightly_collapse.loss import OrthogonalityRegularizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
callbacks = importlib.import_module("lightly_collapse.callbacks.transformers")

WEIGHT = 0.05


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.head(self.backbone(x)).square().mean()}


def train(model: nn.Module, folder: Path, *given: Any, steps: int = 4) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        max_steps=steps,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
        max_grad_norm=0.0,
    )
    # Of its own making the trainer leaves weights out that are frozen at the start.
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    rows = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    data: Any = [{"x": row} for row in rows]
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        optimizers=(optimizer, schedule),
        callbacks=list(given),
    )
    trainer.train()
    return trainer


class Thaw(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Thaws the weights after two steps and freezes them again after four."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        for module in model.backbone:
            if isinstance(module, nn.Linear):
                module.requires_grad_(state.global_step in (2, 3))


class ByHand(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self, regularizer: OrthogonalityRegularizer) -> None:
        self.regularizer = regularizer

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **_: Any
    ) -> None:
        if model.backbone[0].weight.requires_grad:
            self.regularizer.accumulate_gradient()


@pytest.mark.filterwarnings("ignore")
def test_frozen_weights_beside_trainable_norms_wait_to_thaw(tmp_path: Path) -> None:
    ours, theirs = Model(), Model()
    by_hand = ByHand(OrthogonalityRegularizer(theirs.backbone, weight=WEIGHT))
    for model in (ours, theirs):
        for layer in (model.backbone[0], model.backbone[2]):
            layer.requires_grad_(False)
    callback = callbacks.OrthogonalityCallback("so", WEIGHT, target="backbone")
    with pytest.warns(UserWarning, match=r"'backbone' are frozen: .*; trainable are: head"):
        train(ours, tmp_path, callback, Thaw(), steps=6)
    assert callback.penalty is None  # frozen again at the last step
    train(theirs, tmp_path, by_hand, Thaw(), steps=6)
    start = Model().backbone[0].weight
    assert not torch.allclose(ours.backbone[0].weight, start, atol=1e-3)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


class Attach(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any
    ) -> None:
        OrthogonalityRegularizer(model.backbone, weight="auto").attach(optimizer.optimizer)


@pytest.mark.filterwarnings("ignore")
def test_auto_moves_the_weights_after_each_step(tmp_path: Path) -> None:
    ours, theirs, without = Model(), Model(), Model()
    train(ours, tmp_path, callbacks.OrthogonalityCallback(weight="auto", target="backbone"))
    train(theirs, tmp_path, Attach())
    train(without, tmp_path)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(ours.backbone[0].weight, without.backbone[0].weight, atol=1e-3)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_the_gradient_is_scaled_where_the_trainer_has_not_unscaled(max_grad_norm: float) -> None:
    model = Model()
    callback = callbacks.OrthogonalityCallback("so", WEIGHT, target="backbone")
    state = SimpleNamespace(is_world_process_zero=True)
    callback.on_train_begin(None, state, None, model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    callback.on_pre_optimizer_step(
        SimpleNamespace(max_grad_norm=max_grad_norm),
        state,
        None,
        optimizer=SimpleNamespace(scaler=scaler),
    )
    plain = Model()
    OrthogonalityRegularizer(plain.backbone, weight=WEIGHT).accumulate_gradient()
    factor = 1.0 if max_grad_norm else 1024.0
    assert plain.backbone[0].weight.grad is not None
    torch.testing.assert_close(
        model.backbone[0].weight.grad, plain.backbone[0].weight.grad * factor, rtol=1e-6, atol=0
    )


class Fails(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
def test_hooks_of_an_interrupted_training_go_when_it_is_begun_again(tmp_path: Path) -> None:
    model = Model()
    callback = callbacks.CollapseCallback(every_n_steps=2, lid_k=3)
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path, callback, Fails())
    trainer = train(model, tmp_path, callback)
    key = "collapse/backbone/rows"
    assert [row[key] for row in trainer.state.log_history if key in row] == [16, 16]
    assert not model.backbone._forward_hooks
