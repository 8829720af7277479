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


class OnlineAndTarget(nn.Module):
    """As BYOL: a predictor and a target of training, of which validation calls the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.predictor = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4))


@pytest.mark.parametrize("validated", [True, False])
def test_what_is_called_in_training_alone_is_not_offered_to_a_validation_loop(validated):
    model, taking = OnlineAndTarget(), False
    recorder = CallRecorder({"model": model}, taking=lambda: taking)
    model.predictor(model.backbone(torch.rand(2, 4)))
    taking = True
    if validated:
        model.backbone(torch.rand(2, 4))
        expected = 'was never called; inside it these were: model.backbone. Use layers=("model.ba'
    else:
        expected = "a module inside model was called, but not while its rows were taken"
    assert expected in recorder.explain("model")
    recorder.remove()
