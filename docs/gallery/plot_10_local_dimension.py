"""Local against global dimension
==============================

A curved sheet fills all directions and is yet two-dimensional everywhere. Spectral ranks see the
first, the local intrinsic dimensionality (LID) the second: LDReg regularizes the second.
"""

import matplotlib.pyplot as plt
import torch

from lightly_collapse.functional import effective_rank, geometric_mean, lid_mom, singular_values
from lightly_collapse.loss import LDRegularizer

generator = torch.Generator().manual_seed(0)


def sheet(frequency, n=2000, width=32):
    """A random smooth map of the plane into `width` dimensions."""
    plane = torch.rand(n, 2, generator=generator)
    directions = frequency * torch.randn(2, width, generator=generator)
    return torch.cos(plane @ directions + 6.28 * torch.rand(width, generator=generator))


frequencies = [0.5, 1, 2, 4, 8]
ranks, local = [], []
for frequency in frequencies:
    x = sheet(frequency)
    ranks.append(float(effective_rank(singular_values(x, center=True))))
    local.append(float(geometric_mean(lid_mom(x, k=20))))
ball = torch.randn(2000, 32, generator=generator)
print(f"Gaussian of 32 dimensions: mLID {float(geometric_mean(lid_mom(ball, k=20))):.1f}")

plt.plot(frequencies, ranks, marker="o", label="effective rank")
plt.plot(frequencies, local, marker="s", label="mLID, 20 neighbours")
plt.axhline(2, color="gray", linestyle=":", label="dimension of the sheet")
plt.xscale("log", base=2)
plt.xlabel("frequency of the map")
plt.legend()
plt.show()

# %%
# LDReg can pull towards a dimension (its appendix A). Here the points themselves are trained, by
# the regularizer alone: towards 1 a cloud in the plane breaks into short curves and clumps, towards
# 2 it stays a cloud.

cloud = torch.randn(400, 2, generator=generator)


def trained(target, steps=200):
    points = cloud.clone().requires_grad_()
    regularizer = LDRegularizer(weight=1.0, k=20, target_dimension=target)
    optimizer = torch.optim.Adam([points], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        regularizer(points).backward()
        optimizer.step()
    return points.detach()


clouds = {"start": cloud, "target 1": trained(1.0), "target 2": trained(2.0)}
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for ax, (name, points) in zip(axes, clouds.items(), strict=True):
    ax.scatter(*points.T, s=4)
    ax.set_title(f"{name}: mLID {float(geometric_mean(lid_mom(points, k=20))):.2f}")
    ax.set_aspect("equal")
    ax.set_axis_off()
plt.show()
