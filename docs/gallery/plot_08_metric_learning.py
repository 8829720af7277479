"""Metric learning
===============

The regularizers are also parts for a loss of pytorch-metric-learning.
"""

import matplotlib.pyplot as plt
import torch
from pytorch_metric_learning.losses import ArcFaceLoss

from lightly_collapse.functional import effective_rank, singular_values
from lightly_collapse.io.digits import digits_split
from lightly_collapse.metric_learning import (
    LDRegEmbeddingRegularizer,
    OrthogonalityWeightRegularizer,
)
from lightly_collapse.pretrain.demo.methods import DigitEncoder

split = digits_split(size=16)


def train(**regularizers):
    torch.manual_seed(0)
    encoder = DigitEncoder()
    loss_fn = ArcFaceLoss(num_classes=10, embedding_size=128, **regularizers)
    parameters = [*encoder.parameters(), *loss_fn.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(3):
        for rows in torch.randperm(len(split.train_images)).split(256)[:-1]:
            loss = loss_fn(encoder(split.train_images[rows]), split.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        features = encoder.eval()(split.test_images)
    return singular_values(features, center=True)


without = train()
with_both = train(
    weight_regularizer=OrthogonalityWeightRegularizer(kind="so"),
    weight_reg_weight=1e-2,
    embedding_regularizer=LDRegEmbeddingRegularizer(k=32),
    embedding_reg_weight=0.5,
)
figure, axes = plt.subplots(figsize=(6, 4))
for name, s in {"ArcFace": without, "with both regularizers": with_both}.items():
    print(f"{name}: effective rank {effective_rank(s):.1f}")
    axes.semilogy(s / s[0], label=name)
axes.set(xlabel="index", ylabel="singular value / largest", ylim=(1e-3, 1.2))
axes.legend()
