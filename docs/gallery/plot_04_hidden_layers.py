"""Hidden layers
=============

Collapse does not begin at the output. :func:`~lightly_collapse.report.measure` reads every stage of
a backbone and its weights; the record draws itself and writes a page.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightly_collapse.io.digits import digits_split
from lightly_collapse.report import measure

torch.manual_seed(0)
backbone = resnet18()
backbone.fc = torch.nn.Identity()
images = digits_split(size=32).test_images[:256].expand(-1, 3, -1, -1)
loader = DataLoader(TensorDataset(images), batch_size=64)
report = measure(backbone, loader, ["layer1", "layer2", "layer3", "layer4"], lid_k=10)

for layer in report.layers:
    print(
        f"{layer.name:8} effective rank {layer.value('effective_rank'):6.1f} of {layer.dimensions}"
    )

# %%
# A network at random initialisation already uses few of its dimensions on such images.

for layer in report.layers:
    plt.semilogy([s / layer.spectrum[0] for s in layer.spectrum], label=layer.name)
plt.xlabel("index")
plt.ylabel("singular value / largest")
plt.ylim(1e-4, 2)
plt.legend()
plt.show()

# %%
# The weights: how far the filters of each layer are from orthonormal.

for weight in sorted(report.weights, key=lambda w: -w.orthogonality_residual)[:3]:
    print(f"{weight.name}: {weight.orthogonality_residual:.1f}")
