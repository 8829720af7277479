"""The spectrum over training
==========================

:class:`~lightly_collapse.tracking.CollapseTracker` reads a layer every few steps of any training
loop. Training stays the same bit by bit.
"""

import matplotlib.pyplot as plt
import torch
from lightly.loss import NTXentLoss
from torch import nn

from lightly_collapse.functional import singular_values
from lightly_collapse.io.digits import digits_split
from lightly_collapse.pretrain.demo.methods import DigitEncoder
from lightly_collapse.pretrain.demo.views import BatchedViews
from lightly_collapse.tracking import CollapseTracker

torch.manual_seed(0)
split = digits_split(size=16)
views = BatchedViews(seed=0)
model = nn.Sequential()
model.backbone = DigitEncoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
criterion = NTXentLoss(temperature=0.2)

# %%
# The tracker collects what the layer gives in the steps before a reading. `step()` returns the
# readings when they are due, and None in between.

history, spectra = [], {}
with CollapseTracker(model, layers=("backbone",), every_n_steps=10, window=4, lid_k=10) as tracker:
    for step in range(30):
        images = split.train_images[torch.randperm(len(split.train_images))[:256]]
        loss = criterion(model.backbone(views(images)), model.backbone(views(images)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if readings := tracker.step():
            history.append((step + 1, readings))
            print(step + 1, tracker.line)
            with torch.no_grad():
                features = model.backbone.eval()(split.test_images)
            model.train()
            spectra[step + 1] = singular_values(features, center=True)

# %%
# Left the tracked rank, right the spectrum of held-out images at the same steps.

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.plot(
    [s for s, _ in history], [r["collapse/backbone/effective_rank"] for _, r in history], marker="o"
)
left.set(xlabel="step", ylabel="effective rank of 128")
shades = plt.get_cmap("viridis")
for i, (step, s) in enumerate(spectra.items()):
    right.semilogy(s / s[0], color=shades(i / len(spectra)), label=f"step {step}")
right.set(xlabel="index", ylabel="singular value / largest")
right.legend()
fig.tight_layout()
plt.show()
