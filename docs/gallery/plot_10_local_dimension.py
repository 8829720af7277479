"""Local against global dimension
==============================

A curved sheet fills all directions and is yet two-dimensional everywhere. Spectral ranks see the
first, the local intrinsic dimensionality (LID) the second: LDReg regularizes the second.
"""

import matplotlib.pyplot as plt
import torch

from lightly_collapse.functional import effective_rank, geometric_mean, lid_mom, singular_values

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
