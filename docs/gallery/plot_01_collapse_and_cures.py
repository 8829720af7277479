"""Collapse and three cures
========================

SimCLR without a projector loses dimensions of the representation. A projector, orthogonal weights
and local dimensionality regularization each bring some back.
"""

import matplotlib.pyplot as plt
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn

from lightly_collapse.functional import effective_rank, singular_values
from lightly_collapse.io.digits import digits_split
from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer
from lightly_collapse.pretrain.demo.views import BatchedViews

# %%
# The handwritten digits that scikit-learn ships, and a small encoder.

split = digits_split(size=16)


def encoder():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


# %%
# One training loop. The regularizers are modules whose value is added to the loss: one acts on the
# weights, the other on the representations of the views.


def train(projector, orthogonality=0.0, ldreg=0.0, epochs=4):
    torch.manual_seed(0)
    backbone = encoder()
    head = SimCLRProjectionHead(128, 128, 128) if projector else nn.Identity()
    criterion = NTXentLoss(temperature=0.2)
    on_weights = OrthogonalityRegularizer(backbone, kind="so", weight=orthogonality)
    on_features = LDRegularizer(weight=ldreg, k=32)
    views = BatchedViews(seed=0)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(split.train_images)).split(256)[:-1]:
            images = split.train_images[rows]
            r0, r1 = backbone(views(images)), backbone(views(images))
            loss = criterion(head(r0), head(r1)) + on_weights() + on_features(r0, r1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    backbone.eval()
    with torch.no_grad():
        return singular_values(backbone(split.test_images), center=True)


spectra = {
    "no projector": train(projector=False),
    "projector": train(projector=True),
    "projector + SO": train(projector=True, orthogonality=1e-2),
    "projector + LDReg": train(projector=True, ldreg=0.5),
}

# %%
# The singular values of the centred representation of 540 held-out digits. A line that falls late
# uses many dimensions.

for name, s in spectra.items():
    plt.semilogy(s / s[0], label=f"{name}: effective rank {effective_rank(s):.0f}")
plt.xlabel("index")
plt.ylabel("singular value / largest")
plt.legend()
plt.show()
