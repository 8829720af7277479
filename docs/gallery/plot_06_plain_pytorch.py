"""A plain PyTorch loop with mixed precision
=========================================

Between `backward()` and `step()`, `accumulate_gradient()` adds a regularizer's gradient. The loss
and its scaling stay untouched, so it works under a GradScaler and with accumulated steps.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from lightly_collapse.loss import OrthogonalityRegularizer

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False))
regularizer = OrthogonalityRegularizer(model, kind="so", weight=0.1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
scaler = torch.amp.GradScaler("cpu", enabled=False)  # enabled=True with float16 on a GPU
x, y = torch.randn(256, 64), torch.randint(10, (256,))

history = [regularizer.residuals()]
for _ in range(200):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    regularizer.accumulate_gradient()
    scaler.step(optimizer)
    scaler.update()
    history.append(regularizer.residuals())

# %%
# The residual is the squared distance of the filters from orthonormal ones.
figure, axes = plt.subplots(figsize=(6, 4))
for name in history[0]:
    print(f"{name}: {history[0][name]:.2f} at the start, {history[-1][name]:.2f} at the end")
    axes.semilogy([residuals[name] for residuals in history], label=name)
axes.set(xlabel="step", ylabel="orthogonality residual")
axes.legend()
