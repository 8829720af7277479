"""The regularizers in every method: pipelines built from Lightly's own parts, both doors open."""

import copy
from collections.abc import Callable
from typing import Any

import lightly.loss
import pytest
import torch
from lightly.models.modules import NNMemoryBankModule, heads
from lightly.models.utils import (
    deactivate_requires_grad,
    get_at_index,
    patchify,
    random_token_mask,
    update_momentum,
)
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lightly_collapse.loss import DirectCLRLoss, LDRegularizer, OrthogonalityRegularizer

WIDTH = 24
IMAGE = 16
ROWS = 12
Step = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, WIDTH, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def transformer() -> Any:
    module = pytest.importorskip("lightly.models.modules.masked_vision_transformer_torchvision")
    vit = VisionTransformer(
        image_size=IMAGE, patch_size=4, num_layers=1, num_heads=2, hidden_dim=WIDTH, mlp_dim=32
    )
    return module.MaskedVisionTransformerTorchvision(vit=vit)


class Method(nn.Module):
    """A backbone, a head and a loss; what is not given is what the method does without."""

    def __init__(self, backbone: nn.Module, head: nn.Module, loss: Any, **more: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.loss = backbone, head, loss
        for name, module in more.items():
            setattr(self, name, module)

    def step(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss of two views, and their features."""
        features = [self.backbone(x) for x in (x0, x1)]
        return self.compare(features, x0, x1), features

    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        result: Tensor = self.loss(*(self.head(f) for f in features))
        return result


class OfViews(Method):
    """Losses that take a list of views."""

    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        result: Tensor = self.loss([self.head(f) for f in features])
        return result


class OfRepresentations(Method):
    """DirectCLR: no head."""

    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        result: Tensor = self.loss(*features)
        return result


class Momentum(Method):
    """Two towers, the second following the first: BYOL with a predictor, else MoCo and DINO."""

    def __init__(self, *parts: Any, **more: nn.Module) -> None:
        super().__init__(*parts, **more)
        if not hasattr(self, "teacher_head"):
            self.teacher_head = copy.deepcopy(self.head)
        self.teacher = nn.ModuleList([copy.deepcopy(self.backbone), self.teacher_head])
        deactivate_requires_grad(self.teacher)

    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        update_momentum(self.backbone, self.teacher[0], 0.99)
        update_momentum(self.head, self.teacher[1], 0.99)
        with torch.no_grad():
            targets = [self.teacher[1](self.teacher[0](x)) for x in (x0, x1)]
        outputs = [self.head(f) for f in features]
        if isinstance(self.loss, lightly.loss.DINOLoss):
            result: Tensor = self.loss(targets, outputs, epoch=0)
            return result
        if hasattr(self, "predictor"):
            outputs = [self.predictor(z) for z in outputs]
        result = (self.loss(outputs[0], targets[1]) + self.loss(outputs[1], targets[0])) / 2
        return result


class SimSiam(Method):
    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (self.head(f) for f in features)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        result: Tensor = (self.loss(z0.detach(), p1) + self.loss(z1.detach(), p0)) / 2
        return result


class NNCLR(Method):
    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        z0, z1 = (self.head(f) for f in features)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        n0, n1 = self.bank(z0.detach(), update=False), self.bank(z1.detach(), update=True)
        result: Tensor = (self.loss(n0, p1) + self.loss(n1, p0)) / 2
        return result


class SwaV(Method):
    def compare(self, features: list[Tensor], x0: Tensor, x1: Tensor) -> Tensor:
        self.prototypes.normalize()
        views = [self.prototypes(nn.functional.normalize(self.head(f))) for f in features]
        result: Tensor = self.loss(views, [])
        return result


class MSN(Method):
    def step(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, list[Tensor]]:
        keep, _ = random_token_mask((len(x1), self.backbone.sequence_length), mask_ratio=0.3)
        targets = self.backbone(x0)
        anchors = self.backbone(x1, idx_keep=keep)
        prototypes = self.prototypes.weight
        loss = self.loss(self.head(anchors), self.head(targets).detach(), prototypes)
        return loss, [targets, anchors]


class MAE(Method):
    """Encode the tokens that are kept, rebuild the pixels of those that are not."""

    def step(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, list[Tensor]]:
        length = self.backbone.sequence_length
        keep, masked = random_token_mask((len(x0), length), mask_ratio=0.5)
        encoded = self.backbone.encode(x0, idx_keep=keep)
        embedded = self.embed(encoded)
        tokens = self.mask_token(keep.new_zeros(len(x0), length))
        tokens = tokens.scatter(1, keep[..., None].expand_as(embedded), embedded)
        rebuilt = self.head(self.decoder(tokens))
        target = get_at_index(patchify(x0, 4), masked - 1)
        return self.loss(get_at_index(rebuilt, masked), target), [encoded.mean(dim=1)]


def simclr_head() -> nn.Module:
    return heads.SimCLRProjectionHead(WIDTH, WIDTH, 16)


def methods() -> dict[str, Callable[[], Method]]:
    loss = lightly.loss
    byol = heads.BYOLProjectionHead(WIDTH, 32, 16)
    built: dict[str, Callable[[], Method]] = {
        "SimCLR": lambda: Method(convolutional(), simclr_head(), loss.NTXentLoss()),
        "MoCo": lambda: Momentum(
            convolutional(),
            heads.MoCoProjectionHead(WIDTH, WIDTH, 16),
            loss.NTXentLoss(memory_bank_size=(64, 16)),
        ),
        "BYOL": lambda: Momentum(
            convolutional(),
            copy.deepcopy(byol),
            loss.NegativeCosineSimilarity(),
            predictor=heads.BYOLPredictionHead(16, 32, 16),
        ),
        "SimSiam": lambda: SimSiam(
            convolutional(),
            heads.SimSiamProjectionHead(WIDTH, 32, 16),
            loss.NegativeCosineSimilarity(),
            predictor=heads.SimSiamPredictionHead(16, 8, 16),
        ),
        "Barlow Twins": lambda: Method(
            convolutional(), heads.BarlowTwinsProjectionHead(WIDTH, 32, 32), loss.BarlowTwinsLoss()
        ),
        "VICReg": lambda: Method(
            convolutional(), heads.BarlowTwinsProjectionHead(WIDTH, 32, 32), loss.VICRegLoss()
        ),
        "SwAV": lambda: SwaV(
            convolutional(),
            heads.SwaVProjectionHead(WIDTH, 32, 16),
            loss.SwaVLoss(),
            prototypes=heads.SwaVPrototypes(16, 20),
        ),
        "DINO": lambda: Momentum(
            transformer(),
            heads.DINOProjectionHead(WIDTH, 32, 16, 64),
            loss.DINOLoss(64),
            teacher_head=heads.DINOProjectionHead(WIDTH, 32, 16, 64),  # which cannot be copied
        ),
        "NNCLR": lambda: NNCLR(
            convolutional(),
            heads.NNCLRProjectionHead(WIDTH, 32, 16),
            loss.NTXentLoss(),
            predictor=heads.NNCLRPredictionHead(16, 32, 16),
            bank=NNMemoryBankModule(size=(64, 16)),
        ),
        "TiCo": lambda: Momentum(convolutional(), simclr_head(), loss.TiCoLoss()),
        "DCL": lambda: Method(convolutional(), simclr_head(), loss.DCLLoss()),
        "DCLW": lambda: Method(convolutional(), simclr_head(), loss.DCLWLoss()),
        "MACL": lambda: Method(convolutional(), simclr_head(), loss.MACLLoss()),
        "EMP-SSL": lambda: OfViews(convolutional(), simclr_head(), loss.EMPSSLLoss()),
        "DirectCLR": lambda: OfRepresentations(
            convolutional(), nn.Identity(), DirectCLRLoss(loss_dim=8)
        ),
        "MSN": lambda: MSN(
            transformer(),
            heads.MSNProjectionHead(WIDTH, 32, 16),
            loss.MSNLoss(),
            prototypes=nn.Linear(16, 20, bias=False),
        ),
        "MAE": lambda: MAE(
            transformer(),
            nn.Linear(16, 4 * 4 * 3),
            nn.MSELoss(),
            embed=nn.Linear(WIDTH, 16),
            mask_token=nn.Embedding(1, 16),
            decoder=nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        ),
    }
    if hasattr(loss, "FroSSLLoss"):  # of later Lightly
        built["FroSSL"] = lambda: OfViews(convolutional(), simclr_head(), loss.FroSSLLoss())
    return built


METHODS = methods()


def pipeline(name: str) -> tuple[Method, Tensor, Tensor]:
    torch.manual_seed(0)
    method = METHODS[name]()
    x = torch.rand(ROWS, 3, IMAGE, IMAGE)
    return method, x, x + 0.1 * torch.randn_like(x)


DOORS = ["so", "dso", "mc", "srip", "conv", "accumulated", "ldreg"]


@pytest.mark.parametrize("name", METHODS)
def test_two_training_steps_with_each_door_open(name: str) -> None:
    for door in DOORS:
        method, x0, x1 = pipeline(name)
        kind = door if door not in ("accumulated", "ldreg") else "so"
        orthogonality = OrthogonalityRegularizer(method.backbone, kind, weight=1e-3)
        ldreg = LDRegularizer(weight=0.01, k=6)
        optimizer = torch.optim.SGD(method.parameters(), 0.01)
        before = orthogonality._weights[0].tensor().detach().clone()
        for _ in range(2):
            loss, features = method.step(x0, x1)
            if door == "ldreg":
                loss = loss + ldreg(*features)
            elif door != "accumulated":
                loss = loss + orthogonality()
            optimizer.zero_grad()
            loss.backward()
            if door == "accumulated":
                orthogonality.accumulate_gradient()
            optimizer.step()
            assert loss.isfinite()
        assert all(p.isfinite().all() for p in method.parameters())
        assert not torch.equal(orthogonality._weights[0].tensor(), before)


@pytest.mark.parametrize("name", METHODS)
def test_fifty_steps_on_the_penalty_alone_lower_it(name: str) -> None:
    rates = {"so": 0.01, "dso": 0.005, "mc": 0.03, "srip": 0.03, "conv": 0.003}
    for kind, rate in rates.items():
        method, _, _ = pipeline(name)
        regularizer = OrthogonalityRegularizer(method.backbone, kind, weight=1.0)
        optimizer = torch.optim.SGD(method.backbone.parameters(), rate)
        first = regularizer().item()
        for _ in range(50):
            optimizer.zero_grad()
            regularizer().backward()
            optimizer.step()
        assert regularizer().item() < 0.9 * first
    method, x0, x1 = pipeline(name)
    ldreg = LDRegularizer(weight=1.0, k=6)
    optimizer = torch.optim.SGD(method.backbone.parameters(), 1e-3)
    values = []
    for _ in range(51):
        torch.manual_seed(1)  # the same tokens masked
        penalty = ldreg(*method.step(x0, x1)[1])
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < values[0]
