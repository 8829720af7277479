"""Which layer is offered where the one that was asked for is never called."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lightly_collapse.tracking.calls import CallRecorder

timm = pytest.importorskip("timm")


def torchvision_vit(net: nn.Module, x: Tensor) -> None:
    """As Lightly's masked transformers use it; of a small one the stem has most parameters."""
    tokens = net._process_input(x)
    net.encoder(torch.cat([net.class_token.expand(len(x), -1, -1), tokens], dim=1))


class Student(nn.Module):
    """A teacher, called first, and a student; only the blocks of each are called."""

    def __init__(self) -> None:
        super().__init__()
        self.student = timm.create_model("test_vit", num_classes=0)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def both(net: nn.Module, x: Tensor) -> None:
    net.student.forward_features(x)
    net.teacher.forward_features(x)


@pytest.mark.parametrize(
    ("net", "use", "size", "offered"),
    [
        (lambda: VisionTransformer(32, 16, 2, 2, 16, 32), torchvision_vit, 32, "net.encoder"),
        (
            lambda: timm.create_model("test_vit"),
            lambda n, x: n.forward_features(x),
            160,
            "net.norm",
        ),
        (
            lambda: timm.create_model("test_convnext"),
            lambda n, x: n.forward_features(x),
            64,
            "net.stages",
        ),
        (
            lambda: timm.create_model("resnet10t"),
            lambda n, x: n.forward_features(x),
            64,
            "net.layer4",
        ),
        (Student, both, 160, "net.student.norm"),
    ],
)
def test_the_encoder_is_offered_and_not_its_stem_head_or_teacher(net, use, size, offered):
    model = net()
    recorder = CallRecorder({"net": model})
    use(model, torch.rand(2, 3, size, size))
    assert recorder.explain("net").endswith(f'Use layers=("{offered}",)')
    recorder.remove()
