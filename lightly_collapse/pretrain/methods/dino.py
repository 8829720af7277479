"""DINO."""

import copy
from collections.abc import Sequence
from typing import Any

from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn, no_grad
from typing_extensions import override

from lightly_collapse.pretrain.methods.base import Method, Step


class DINO(Method):
    """DINO: a student is trained to give its momentum teacher's centred distribution.

    Small views, where `data.views.local_crops` asks for them, go to the student alone. The student
    is what is evaluated and exported, as with the other methods.

    Args:
        hidden_dim: of the head.
        bottleneck_dim: of the head's unit vectors.
        output_dim: size of the distribution.
        teacher_temperature: of the teacher's distribution.
        teacher_warmup_epochs: epochs in which it rises to that from 0.04; the paper's ViTs have
            0.07 after 30 epochs.
        start_momentum: of the teacher; it rises to 1 on a cosine.
        frozen_epochs: epochs in which the head's last layer is not trained.
        kwargs: see `Method`.

    Source: Caron et al., ICCV 2021, arXiv 2104.14294.
    """

    def __init__(
        self,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        output_dim: int = 65536,
        teacher_temperature: float = 0.04,
        teacher_warmup_epochs: int = 0,
        start_momentum: float = 0.996,
        frozen_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = (self.feature_dim, hidden_dim, bottleneck_dim, output_dim)
        self.student = DINOProjectionHead(*sizes, freeze_last_layer=frozen_epochs)
        self.teacher_backbone = copy.deepcopy(self.backbone)
        self.teacher = DINOProjectionHead(*sizes)
        self.teacher.load_state_dict(self.student.state_dict())
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher)
        if teacher_warmup_epochs < 0:
            raise ValueError(
                f"teacher_warmup_epochs must not be negative, got {teacher_warmup_epochs}"
            )
        # Lightly's own default raises any other temperature than 0.04 over 30 epochs.
        self.criterion = DINOLoss(
            output_dim,
            teacher_temp=teacher_temperature,
            warmup_teacher_temp_epochs=teacher_warmup_epochs,
        )
        self.start_momentum = start_momentum

    @override
    def trainable_modules(self) -> list[nn.Module]:
        """Backbone and head of the student."""
        return [self.backbone, self.student]

    @override
    def embed(self, features: Tensor) -> Tensor:
        """The student's bottleneck: unit vectors before the last layer."""
        return nn.functional.normalize(self.student.layers(features))

    def temperature_now(self) -> float:
        """The teacher's temperature in this epoch."""
        schedule = self.criterion.teacher_temp_schedule
        if self.current_epoch < len(schedule):
            return float(schedule[self.current_epoch])
        return float(self.criterion.teacher_temp)

    @override
    def step(self, views: Sequence[Tensor]) -> Step:
        """The cross-entropy of student and teacher, over all pairs of different views."""
        momentum = self.momentum(self.start_momentum)
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student, self.teacher, m=momentum)
        features = [self.encode(view) for view in views]
        predicted = [self.student(r) for r in features]
        with no_grad():
            targets = [self.teacher(self.encode(v, self.teacher_backbone)) for v in views[:2]]
        loss = self.criterion(targets, predicted, teacher_temp=self.temperature_now())
        return Step(loss, (features[0], features[1]))

    @override
    def on_after_backward(self) -> None:
        """Drop the last layer's gradient in the first epochs."""
        self.student.cancel_last_layer_gradients(current_epoch=self.current_epoch)
