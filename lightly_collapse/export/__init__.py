"""Export of a pretrained ResNet or ViT to detection: weights, and the configuration that fits them.

`to_detectron2` writes what detectron2 loads, `to_torchvision` a plain state dict. Both find the
backbone in a module, a state dict or a checkpoint, account for every tensor and need no detectron2.
"""

from lightly_collapse.export.detectron2 import (
    detectron2_state_dict,
    torchvision_state_dict,
)
from lightly_collapse.export.resnet import ResNetShape, resnet_shape
from lightly_collapse.export.vit import ViTShape
from lightly_collapse.export.weights import read_detectron2
from lightly_collapse.export.write import Export, normalization, to_detectron2, to_torchvision

__all__ = [
    "Export",
    "ResNetShape",
    "ViTShape",
    "detectron2_state_dict",
    "normalization",
    "read_detectron2",
    "resnet_shape",
    "to_detectron2",
    "to_torchvision",
    "torchvision_state_dict",
]
