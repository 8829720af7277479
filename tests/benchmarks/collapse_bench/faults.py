"""Methods without the part that keeps them from collapsing, and dead units."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import DINOLoss
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse.pretrain.methods import BYOL, DINO, IBOT, NNBYOL, SimSiam
from lightly_collapse.pretrain.methods.base import Step


def callback_changes(name: str, **settings: Any) -> dict[str, Any]:
    """Settings that add a callback of this module to a run."""
    callback = {"class_path": f"{__name__}.{name}", "init_args": settings}
    return {"trainer": {"callbacks": [callback]}}


class BYOLWithoutPredictor(BYOL):
    """BYOL whose projection itself is compared with the momentum encoder's.

    Args:
        kwargs: see `BYOL`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predictor = nn.Identity()


class NNBYOLWithoutPredictor(NNBYOL):
    """NNBYOL whose projection itself is compared with the neighbour of the momentum encoder's.

    Args:
        kwargs: see `NNBYOL`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predictor = nn.Identity()


class BYOLWithoutStopGradient(BYOL):
    """BYOL whose targets come from the trained encoder and pass their gradient on."""

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        r0, r1 = (self.encode(view) for view in views)
        z0, z1 = (self.embed(r) for r in (r0, r1))
        p0, p1 = (self.predictor(z) for z in (z0, z1))
        loss = 4 + 2 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        return Step(loss, (r0, r1))


class SimSiamWithoutPredictor(SimSiam):
    """SimSiam whose two projections are compared with each other.

    Args:
        kwargs: see `SimSiam`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predictor = nn.Identity()


class SimSiamWithoutStopGradient(SimSiam):
    """SimSiam whose targets pass their gradient on."""

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        r0, r1 = (self.encode(view) for view in views)
        z0, z1 = (self.embed(r) for r in (r0, r1))
        p0, p1 = (self.predictor(z) for z in (z0, z1))
        return Step((self.criterion(p0, z1) + self.criterion(p1, z0)) / 2, (r0, r1))


class DINOWithFault(DINO):
    """DINO with a centre that does not move, or a teacher of any temperature from the first step.

    Args:
        centred: whether the centre follows the teacher's mean.
        temperature: of the teacher, without warm-up.
        output_dim: see `DINO`.
        kwargs: see `DINO`.
    """

    def __init__(
        self,
        centred: bool = True,
        temperature: float = 0.04,
        output_dim: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        self.criterion = DINOLoss(
            output_dim,
            warmup_teacher_temp=temperature,
            teacher_temp=temperature,
            center_momentum=0.9 if centred else 1.0,
        )


class IBOTWithoutCentring(IBOT):
    """iBOT whose centres do not follow the teacher's mean.

    Args:
        kwargs: see `IBOT`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for criterion in (self.criterion, self.patch_criterion):
            criterion.center.momentum = 1.0


class ChangedLater(pl.Callback):
    """Another learning rate or weight decay from some step on, as after a mistaken restart.

    Args:
        after: share of the steps after which it changes.
        learning_rate: factor of the scheduled one.
        weight_decay: the new one; None leaves it.
    """

    def __init__(
        self, after: float, learning_rate: float = 1.0, weight_decay: float | None = None
    ) -> None:
        self.after, self.learning_rate, self.weight_decay = after, learning_rate, weight_decay

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Set it; the scheduler writes its own learning rate again after the step."""
        if trainer.global_step < self.after * trainer.estimated_stepping_batches:
            return
        for group in optimizer.param_groups:
            group["lr"] *= self.learning_rate
            if self.weight_decay is not None:
                group["weight_decay"] = self.weight_decay


class DeadUnits(pl.Callback):
    """Gives most channels of the last block a bias so low that their ReLU never opens.

    Such a unit has no gradient and stays dead, as one does after a step that was too large.

    Args:
        share: of the channels.
        bias: of their batch normalisation, whose input has variance 1.
    """

    def __init__(self, share: float = 0.9, bias: float = -10.0) -> None:
        self.share, self.bias = share, bias

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the biases."""
        backbone: Any = pl_module.backbone
        last = backbone.layer4 if hasattr(backbone, "layer4") else backbone[3]
        width = backbone.feature_dim
        dead = torch.arange(width) < self.share * width
        for norm in last.modules():
            # Of a residual block every branch that ends in the output; hidden ones are narrower.
            if isinstance(norm, nn.BatchNorm2d):
                with torch.no_grad():
                    norm.bias[dead] = self.bias
