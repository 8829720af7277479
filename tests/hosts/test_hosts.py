"""One training in every host: the same weights, readings and losses, to 1e-6.

The lines that a user adds in each are those between the comments `# added`.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightly_collapse.callbacks import CollapseMonitor, OrthogonalityCallback
from lightly_collapse.loss import DirectCLRLoss, LDRegularizer, OrthogonalityRegularizer
from lightly_collapse.tracking import CollapseTracker

STEPS, ROWS, WEIGHT, RATE = 6, 16, 0.05, 0.1
LID_K = 4


class Views(Dataset[list[torch.Tensor]]):
    def __len__(self) -> int:
        return STEPS * ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(12, generator=generator)
        return {name: x + 0.1 * torch.randn(12, generator=generator) for name in ("x0", "x1")}


class Siamese(nn.Module):
    """DirectCLR and LDReg in the loss, dropout to draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Linear(12, 24), nn.Dropout(0.1), nn.ReLU(), nn.Linear(24, 10)
        )
        self.direct = DirectCLRLoss(loss_dim=6)
        self.ldreg = LDRegularizer(weight=0.1, k=LID_K)
        self.losses: list[float] = []

    def forward(self, x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
        if not self.losses:
            torch.manual_seed(1)  # hosts and their data loaders draw numbers of their own before
        z0, z1 = self.backbone(x0), self.backbone(x1)
        loss = self.direct(z0, z1) + self.ldreg(z0, z1)
        self.losses.append(loss.item())
        return {"loss": loss}


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Views(), batch_size=ROWS)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), RATE)


Result = tuple[Siamese, dict[str, float]]


def plain(tmp_path: Any) -> Result:
    model = Siamese()
    optimizer = optimizer_of(model)
    # added
    regularizer = OrthogonalityRegularizer(model.backbone, weight=WEIGHT)
    tracker = CollapseTracker(model, every_n_steps=STEPS, lid_k=LID_K)
    # added
    for batch in loader():
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        regularizer.accumulate_gradient()  # added
        optimizer.step()
        readings = tracker.step()  # added
    tracker.close()  # added
    assert readings is not None
    return model, readings


def lightning_host(package: Any, tmp_path: Any) -> Result:
    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Siamese()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self)

    module = Module()
    trainer = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[
            # added
            OrthogonalityCallback("so", WEIGHT, target="model.backbone"),
            CollapseMonitor(("model.backbone",), every_n_steps=STEPS, lid_k=LID_K),
            # added
        ],
    )
    trainer.fit(module, loader())
    for callback in trainer.callbacks[:2]:
        assert isinstance(callback, package.Callback)
    readings = {
        name.replace("/model.backbone/", "/backbone/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("collapse/")
    }
    return module.model, readings


def pytorch_lightning(tmp_path: Any) -> Result:
    return lightning_host(pytest.importorskip("pytorch_lightning"), tmp_path)


def lightning_pytorch(tmp_path: Any) -> Result:
    return lightning_host(pytest.importorskip("lightning.pytorch"), tmp_path)


def fabric(tmp_path: Any) -> Result:
    lightning_fabric = pytest.importorskip("lightning.fabric")
    host = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    model = Siamese()
    # added
    regularizer = OrthogonalityRegularizer(model.backbone, weight=WEIGHT)
    tracker = CollapseTracker(model, every_n_steps=STEPS, lid_k=LID_K)
    # added
    run, optimizer = host.setup(model, optimizer_of(model))
    batches = host.setup_dataloaders(loader())
    for batch in batches:
        optimizer.zero_grad()
        host.backward(run(**batch)["loss"])
        regularizer.accumulate_gradient()  # added
        optimizer.step()
        readings = tracker.step()  # added
    tracker.close()  # added
    assert readings is not None
    return model, readings


def accelerate(tmp_path: Any) -> Result:
    host = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = Siamese()
    # added
    regularizer = OrthogonalityRegularizer(model.backbone, weight=WEIGHT)
    tracker = CollapseTracker(model, every_n_steps=STEPS, lid_k=LID_K)
    # added
    run, optimizer, batches = host.prepare(model, optimizer_of(model), loader())
    for batch in batches:
        optimizer.zero_grad()
        host.backward(run(**batch)["loss"])
        regularizer.accumulate_gradient()  # added
        optimizer.step()
        readings = tracker.step()  # added
    tracker.close()  # added
    assert readings is not None
    return model, readings


def transformers(tmp_path: Any) -> Result:
    host = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    callbacks = importlib.import_module("lightly_collapse.callbacks.transformers")

    model = Siamese()
    arguments = host.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=ROWS,
        num_train_epochs=1,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=1,
    )
    optimizer = optimizer_of(model)
    collapse = callbacks.CollapseCallback(every_n_steps=STEPS, lid_k=LID_K)  # added

    class InOrder(host.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            return loader()

    trainer = InOrder(
        model,
        arguments,
        train_dataset=Views(),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        callbacks=[
            callbacks.OrthogonalityCallback("so", WEIGHT, target="backbone"),  # added
            collapse,  # added
        ],
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "collapse/backbone/rankme" in row]
    assert [row["step"] for row in rows] == [STEPS]
    assert collapse.line.startswith("rank ")
    assert not model.backbone._forward_hooks
    return model, {name: value for name, value in rows[0].items() if name.startswith("collapse/")}


HOSTS = {
    "pytorch_lightning": pytorch_lightning,
    "lightning.pytorch": lightning_pytorch,
    "Fabric": fabric,
    "Accelerate": accelerate,
    "transformers": transformers,
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", HOSTS)
def test_a_host_trains_and_reads_as_plain_pytorch(
    host: str, reference: Result, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, expected_readings = reference
    model, readings = HOSTS[host](tmp_path)
    weights = max(
        float((a - b).detach().abs().max())
        for a, b in zip(model.backbone.parameters(), expected.backbone.parameters(), strict=True)
    )
    losses = max(abs(a - b) for a, b in zip(model.losses, expected.losses, strict=True))
    read = max(abs(readings[name] - value) for name, value in expected_readings.items())
    with capsys.disabled():
        print(f"\n{host:18} weights {weights:.1e}  losses {losses:.1e}  readings {read:.1e}")
    assert readings.keys() == expected_readings.keys()
    assert max(weights, losses) <= 1e-6
    assert readings == pytest.approx(expected_readings, rel=1e-6, abs=1e-6)


def test_the_penalty_changes_the_training(reference: Result) -> None:
    model = Siamese()
    optimizer = optimizer_of(model)
    for batch in loader():
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
    assert not torch.allclose(model.backbone[0].weight, reference[0].backbone[0].weight, atol=1e-3)
