"""From a backbone to detection
============================

:func:`~lightly_collapse.export.to_detectron2` writes weights that detectron2's and torchvision's
detectors load; the features are those of the backbone to the last bit.
"""

import tempfile
from pathlib import Path

import torch
from torchvision.models import resnet18

from lightly_collapse.export import read_detectron2, to_detectron2

torch.manual_seed(0)
backbone = resnet18()
path = Path(tempfile.mkdtemp()) / "r18.pkl"
export = to_detectron2(backbone, path)
print(f"ResNet-{export.shape.depth}: {export.converted} tensors, {len(export.left_out)} left out")

# %%
# The file holds the backbone's tensors by detectron2's names.

weights = read_detectron2(path)
print(len(weights), "tensors, the first:", *list(weights)[:3])
