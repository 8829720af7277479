"""Tokens of a vision transformer
==============================

A transformer's output holds a class token and patch tokens. They collapse separately, so they are
measured as two layers.
"""

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from lightly_collapse.io.digits import digits_split
from lightly_collapse.report import measure


class Tokens(VisionTransformer):
    """torchvision's transformer that returns all tokens of its last layer."""

    def forward(self, x):
        x = self._process_input(x)
        return self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1))


torch.manual_seed(0)
model = Tokens(image_size=32, patch_size=4, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192)
torch.nn.init.normal_(model.class_token, std=0.02)
images = digits_split(size=32).test_images[:256].expand(-1, 3, -1, -1)
report = measure(model, DataLoader(TensorDataset(images), batch_size=64), [], lid_k=10)

# %%
# All images have nearly the same class token before training, so its rank is low, while patches
# differ by position and content.

for layer in report.layers:
    rank, rows = layer.value("effective_rank"), int(layer.value("rows"))
    print(f"{layer.name:14} effective rank {rank:5.1f} of {layer.dimensions} from {rows} rows")
for layer in report.layers:
    plt.semilogy([s / layer.spectrum[0] for s in layer.spectrum], label=layer.name)
plt.xlabel("index")
plt.ylabel("singular value / largest")
plt.ylim(1e-4, 2)
plt.legend()
plt.show()
