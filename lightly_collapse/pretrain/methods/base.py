"""What all pretraining methods have in common."""

import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightly.utils.benchmarking import OnlineLinearClassifier
from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse.io.backbones import BackboneSettings, create_backbone
from lightly_collapse.pretrain.evaluation import HeldOut
from lightly_collapse.pretrain.memory_format import is_safe_channels_last
from lightly_collapse.pretrain.settings import (
    LDReg,
    OptimizerSettings,
    Orthogonality,
    VarianceCovariance,
)

_BACKBONE, _OPTIMIZER = BackboneSettings(), OptimizerSettings()


class DivergedError(ValueError):
    """The loss or the weights are no longer finite."""


@dataclass(frozen=True)
class Step:
    """Loss and representations of one batch.

    Attributes:
        loss: its objective, a scalar.
        features: the (n, d) representations of the views that LDReg acts on.
        reference: further (m, d) points for LDReg, such as a momentum encoder's representations.
    """

    loss: Tensor
    features: tuple[Tensor, ...]
    reference: Tensor | None = None


class Method(LightningModule):
    """One self-supervised method: a backbone, heads and an objective.

    A method defines `step`, and `trainable_modules` where more than the backbone and `self.head` is
    trained; regularizers, optimizer, online evaluation, and the checks before and during training
    are here. A training step waits for the device once, to check that all its values are finite.

    Args:
        backbone: the encoder.
        optimizer: the optimizer and its schedule.
        orthogonality: orthogonality regularization of the backbone; None for none.
        ldreg: local dimensionality regularization; None for none.
        variance_covariance: variance and covariance regularization of the representations; None
            for none.
        channels_last: store images and convolution weights with their channels last, which is
            faster on most hardware; not done where `is_safe_channels_last` says no.
        num_classes: of the data's labels, for the online linear probe; the command fills it in. No
            probe is trained with fewer than two.

    Raises:
        ValueError: if a setting is out of range, naming it.
    """

    global_views = 2
    """How many full-size views of an image a step takes."""

    ldreg_scale = 1.0
    """A factor on LDReg's weight, where a method's published form is not a mean over all rows."""

    def __init__(
        self,
        backbone: BackboneSettings = _BACKBONE,
        optimizer: OptimizerSettings = _OPTIMIZER,
        orthogonality: Orthogonality | None = None,
        ldreg: LDReg | None = None,
        variance_covariance: VarianceCovariance | None = None,
        channels_last: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.backbone_settings = backbone
        self.optimizer = optimizer
        self.channels_last = channels_last
        self.backbone = create_backbone(backbone)
        self.feature_dim: int = self.backbone.feature_dim  # type: ignore[assignment]
        self.head: nn.Module = nn.Identity()
        self.probe: OnlineLinearClassifier | None = None
        if num_classes > 1:
            self.probe = OnlineLinearClassifier(
                self.feature_dim, num_classes, topk=(1, min(5, num_classes))
            )
        self.orthogonality = orthogonality.build(self.backbone) if orthogonality else None
        self.ldreg = ldreg.build(self.ldreg_scale) if ldreg else None
        self.variance_covariance = variance_covariance.build() if variance_covariance else None
        self._ldreg_from = ldreg.from_epoch if ldreg is not None else 0
        self._held_out = HeldOut()
        self._finite: dict[str, Tensor] = {}

    @abstractmethod
    def step(self, views: Sequence[Tensor]) -> Step:
        """The objective of one batch.

        Args:
            views: (n, 3, height, width) images, a tensor a view.

        Returns:
            The loss with the representations it came from.
        """

    def trainable_modules(self) -> list[nn.Module]:
        """The modules that the optimizer trains: backbone, head and predictor, if it has one."""
        predictor = getattr(self, "predictor", None)
        return [self.backbone, self.head, *([] if predictor is None else [predictor])]

    @property
    def name(self) -> str:
        """The method's name on the command line."""
        return type(self).__name__

    def encode(self, images: Tensor, backbone: nn.Module | None = None) -> Tensor:
        """The representation of images.

        Args:
            images: (n, 3, height, width).
            backbone: another encoder than the trained one, such as its momentum copy.

        Returns:
            (n, feature_dim); whether it is finite is checked with the loss.
        """
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images = images.contiguous(memory_format=layout)
        features: Tensor = (backbone or self.backbone)(images)
        if self.training:
            self._expect_finite("the representation holds NaN or inf", features)
        return features

    @override
    def forward(self, images: Tensor) -> Tensor:
        """The representation of images, (n, feature_dim)."""
        return self.encode(images)

    def embed(self, features: Tensor) -> Tensor:
        """What the loss acts on, from representations (n, feature_dim)."""
        return self.head(features)

    def momentum(self, start: float, end: float = 1.0) -> float:
        """The momentum of a momentum encoder at this step, on a cosine from `start` to `end`."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return float(cosine_schedule(self.global_step, steps, start, end))

    @override
    def training_step(self, batch: tuple[Sequence[Tensor], Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, with regularizers and the online probe's."""
        views, labels = batch
        self._finite.clear()
        try:
            step = self.step(views)
            loss = self._regularized(step)
        except ValueError:
            # A loss or a regularizer refuses rows that are not finite in words of its own.
            self._check_finite()
            raise
        self._check_finite()
        self.log("loss", loss, prog_bar=True)
        if self.probe is None:
            return loss
        probe_loss, scores = self.probe.training_step(
            (step.features[0].detach(), labels), batch_idx
        )
        self.log_dict(scores)
        return loss + probe_loss

    def _regularized(self, step: Step) -> Tensor:
        loss = step.loss
        self._expect_finite("the loss is {}", loss)
        if self.orthogonality is not None and not isinstance(self.orthogonality.weight, str):
            penalty = self.orthogonality()
            self.log("orthogonality", penalty)
            loss = loss + penalty
        if self.ldreg is not None and self.current_epoch >= self._ldreg_from:
            penalty = self.ldreg(*step.features, reference=step.reference)
            self.log("ldreg", penalty)
            loss = loss + penalty
        if self.variance_covariance is not None:
            penalty = self.variance_covariance(*step.features)
            self.log("variance_covariance", penalty)
            loss = loss + penalty
        self._expect_finite("the regularized loss is {}", loss)
        return loss

    def _expect_finite(self, what: str, value: Tensor) -> None:
        """Note on the device whether a value is finite; `_check_finite` reads all such notes."""
        # A finite sum has finite terms; the sum is much the faster to compute.
        total = value.detach().sum(dtype=torch.float32)
        self._finite[what] = total + self._finite.get(what, 0.0)

    def _check_finite(self) -> None:
        """Wait for the device, once, and stop if a value of this step was not finite.

        Raises:
            DivergedError: naming the first value that was not.
        """
        if not self._finite:
            return
        totals: list[float] = torch.stack([*self._finite.values()]).tolist()
        for what, total in zip(self._finite, totals, strict=True):
            if not math.isfinite(total):
                raise self._diverged(what.format(total))

    @override
    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Collect representations: of training images (loader 0) and held-out ones (loader 1)."""
        images, labels = batch
        features = self.encode(images)
        if not features.isfinite().all():
            raise self._diverged("the representation holds NaN or inf")
        self._held_out.add(dataloader_idx, features, labels)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log kNN and online linear accuracy and RankMe of the held-out representations."""
        if self.trainer.sanity_checking:
            self._held_out.clear()
            return
        for name, value in self._held_out.scores(self.probe).items():
            self.log(name, value, prog_bar=True, sync_dist=True)

    @override
    def setup(self, stage: str) -> None:
        """Check the settings against the data, before any training."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            return
        device = self.trainer.strategy.root_device
        self.channels_last = self.channels_last and is_safe_channels_last(self, device)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        processes = self.trainer.world_size
        if data.train_count < data.batch_size * processes:
            raise ValueError(
                f"data.batch_size times {processes} processes must be at most the number of "
                f"training images, {data.train_count}, got {data.batch_size}"
            )
        rows = self._ldreg_rows(data.batch_size) * processes
        if self.ldreg is not None and self.ldreg.k >= rows:
            raise ValueError(
                f"ldreg.k must be below the {rows} rows that a step of batch_size "
                f"{data.batch_size} stacks, got {self.ldreg.k}; take a larger batch or a smaller k"
            )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("trainer.max_epochs or max_steps must be given, got neither")
        if self._warmup_steps() >= max(1, steps):
            raise ValueError(
                f"optimizer.warmup_epochs must end before training does, after {steps} steps, "
                f"got {self.optimizer.warmup_epochs}, which are {self._warmup_steps()} steps"
            )

    def _warmup_steps(self) -> int:
        trainer = self.trainer
        epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        return round(self.optimizer.warmup_epochs * epoch)

    def _ldreg_rows(self, batch_size: int) -> int:
        return self.global_views * batch_size

    @override
    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule by step."""
        trainer = self.trainer
        steps = int(trainer.estimated_stepping_batches)
        warmup = self._warmup_steps()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        optimizer = self.optimizer.build(self.trainable_modules(), self.probe, batch)
        if self.orthogonality is not None and isinstance(self.orthogonality.weight, str):
            self.orthogonality.attach(optimizer)
        # Not Lightly's CosineWarmupScheduler: that one restores its length from a checkpoint, and a
        # run resumed with more epochs would train them with the learning rate of the end.
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            # A plain number: older versions of Lightly give numpy's, which no checkpoint may hold.
            lambda step: float(
                cosine_warmup_schedule(
                    min(step, steps), steps, 1.0, self.optimizer.min_lr_factor, warmup, 0.0
                )
            ),
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    @override
    def on_train_epoch_end(self) -> None:
        """Stop before the checkpoint is written if weights are no longer finite."""
        state = {k: v for k, v in self.state_dict().items() if v.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in state.values()])
        for name, good in zip(state, finite.tolist(), strict=True):
            if not good:
                raise self._diverged(f"{name} holds NaN or inf")

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the method's and the backbone's settings, and the buffers that the state leaves out.

        Non-persistent buffers, such as MoCo's queue and SRIP's tracked vectors, are needed to
        resume with the same result.
        """
        state = self.state_dict()
        checkpoint["buffers"] = {
            name: value for name, value in self.named_buffers() if name not in state
        }
        checkpoint["pretrain"] = {
            "method": self.name,
            "backbone": asdict(self.backbone_settings),
            "feature_dim": self.feature_dim,
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the buffers that are not part of the state."""
        for name, value in checkpoint["buffers"].items():
            path, _, attribute = name.rpartition(".")
            module = self.get_submodule(path)
            setattr(module, attribute, value.to(module.get_buffer(attribute).device))

    def _diverged(self, what: str) -> DivergedError:
        callback = self.trainer.checkpoint_callback
        path = getattr(callback, "best_model_path", "")
        last = path if path and os.path.exists(path) else "none was written yet"
        return DivergedError(
            f"{self.name}: {what} at step {self.global_step} of epoch {self.current_epoch}; "
            f"last good checkpoint: {last}"
        )
