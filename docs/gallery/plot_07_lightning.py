"""Lightning: two callbacks, no change to the module
=================================================

The callbacks work with `pytorch_lightning` and with `lightning.pytorch`.
"""

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from torch import nn
from torch.utils.data import DataLoader

from lightly_collapse.callbacks import CollapseMonitor, OrthogonalityCallback
from lightly_collapse.io.digits import digits_split
from lightly_collapse.pretrain.demo.methods import DigitEncoder
from lightly_collapse.pretrain.demo.views import BatchedViews


class SimCLR(pl.LightningModule):
    """As anybody writes it."""

    def __init__(self):
        super().__init__()
        self.backbone = DigitEncoder()
        self.head = nn.Linear(128, 64)
        self.criterion = NTXentLoss(temperature=0.2)
        self.views = BatchedViews(seed=0)

    def training_step(self, images, index):
        a, b = (self.head(self.backbone(self.views(images))) for _ in range(2))
        return self.criterion(a, b)

    def validation_step(self, images, index):
        self.backbone(images)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


torch.manual_seed(0)
split = digits_split(size=16)
train = DataLoader(split.train_images, batch_size=256, shuffle=True, drop_last=True)
held_out = DataLoader(split.test_images, batch_size=256)
folder = tempfile.mkdtemp()
trainer = pl.Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=False,
    default_root_dir=folder,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[
        OrthogonalityCallback(kind="so", weight=1e-3, target="backbone"),
        CollapseMonitor(layers=("backbone",), dirpath=folder),
    ],
)
trainer.fit(SimCLR(), train, held_out)
for name in ("rankme", "effective_rank", "collapsed_dimensions", "mlid"):
    print(name, round(float(trainer.callback_metrics[f"collapse/backbone/{name}"]), 1))

# %%
# Every epoch is a row of ``collapse.csv``.

with Path(folder, "collapse.csv").open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
figure, axes = plt.subplots(figsize=(6, 4))
for name in ("rankme", "effective_rank", "mlid"):
    axes.plot([float(row[f"backbone/{name}"]) for row in rows], marker="o", label=name)
axes.set(xlabel="epoch", xticks=range(len(rows)))
axes.legend()
