"""The parts of a method's configuration that all methods share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from lightly.models.utils import get_weight_decay_parameters
from torch import nn

from lightly_collapse.functional.intrinsic_dimension import Estimator
from lightly_collapse.functional.orthogonality import PenaltyKind
from lightly_collapse.loss import (
    LDRegularizer,
    OrthogonalityRegularizer,
    VarianceCovarianceRegularizer,
)
from lightly_collapse.loss.ldreg import Norm
from lightly_collapse.pretrain.lars import LARS


@dataclass(frozen=True)
class Orthogonality:
    """Orthogonality regularization of the backbone's weights.

    Attributes:
        kind: `so`, `dso`, `mc`, `srip` or `conv`, or a control: `norms` or `shape`; see
            `lightly_collapse.functional.orthogonality_penalty`.
        weight: gamma; `auto` for a strength that needs no sweep, of the kind `so`.
        include: regular expressions of parameter names; None for every weight.
        exclude: regular expressions of parameter names to leave out.
        split_qkv: treat a fused query, key and value projection as three weights.
        initialize: start from random orthonormal filters; with a weight of 0 that is all.
    """

    kind: PenaltyKind = "so"
    weight: float | Literal["auto"] = 1e-6
    include: list[str] | None = None
    exclude: list[str] | None = None
    split_qkv: bool = False
    initialize: bool = False

    def build(self, backbone: nn.Module) -> OrthogonalityRegularizer:
        """The regularizer of a backbone, whose weights are replaced where `initialize` says so."""
        regularizer = OrthogonalityRegularizer(
            backbone, self.kind, self.weight, self.include, self.exclude, self.split_qkv
        )
        if self.initialize:
            regularizer.initialize()
        return regularizer


@dataclass(frozen=True)
class LDReg:
    """Local dimensionality regularization of the representation.

    Attributes:
        weight: beta.
        k: number of neighbours.
        norm: `l1` or `l2`.
        estimator: `mom`, the method of moments, or `mle`, maximum likelihood.
        from_epoch: first epoch, counted from 0, in which it acts.
        target_dimension: the LID to pull towards; None to raise it without limit.
        minimize: lower the LID instead: MinLID, the paper's control experiment.
    """

    weight: float = 0.01
    k: int = 64
    norm: Norm = "l1"
    estimator: Estimator = "mom"
    from_epoch: int = 0
    target_dimension: float | None = None
    minimize: bool = False

    def build(self, scale: float = 1.0) -> LDRegularizer:
        """The regularizer, its weight times `scale`, over all processes.

        Raises:
            ValueError: if a setting is out of range.
        """
        return LDRegularizer(
            scale * self.weight,
            self.k,
            self.norm,
            self.estimator,
            gather_distributed=True,
            target_dimension=self.target_dimension,
            minimize=self.minimize,
        )


@dataclass(frozen=True)
class VarianceCovariance:
    """Variance and covariance regularization of the representation.

    Attributes:
        variance_weight: of the hinge on every dimension's standard deviation.
        covariance_weight: of the squared covariances of different dimensions.
    """

    variance_weight: float = 1.0
    covariance_weight: float = 0.04

    def build(self) -> VarianceCovarianceRegularizer:
        """The regularizer, over all processes.

        Raises:
            ValueError: if a weight is negative or not finite.
        """
        return VarianceCovarianceRegularizer(
            self.variance_weight, self.covariance_weight, gather_distributed=True
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule: linear warm-up, then a cosine.

    Attributes:
        name: `sgd`, `lars` or `adamw`.
        learning_rate: at the end of the warm-up, before scaling.
        scaling: `none`; `linear`, times the whole batch over 256; `sqrt`, times the root of the
            whole batch. The whole batch is that of all devices and accumulated steps.
        undecayed_learning_rate: of biases and normalisation layers, scaled alike; None for that of
            the weights.
        momentum: of SGD and LARS.
        betas: decay rates of AdamW's two moving averages.
        trust_coefficient: of LARS, the paper's eta.
        clip_rate: of LARS: no weight's adapted learning rate exceeds the schedule's.
        weight_decay: on weights; biases and normalisation layers have none, and with LARS no
            adapted rate.
        decay_biases: treat biases and normalisation layers as weights, as torch's optimizers do
            with `model.parameters()`.
        warmup_epochs: of linear warm-up.
        min_lr_factor: learning rate at the end, as a share of its peak.
        probe_learning_rate: of the online linear probe; None for 0.1 with SGD or LARS and 1e-3
            with AdamW.
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float = 0.06
    undecayed_learning_rate: float | None = None
    scaling: Literal["none", "linear", "sqrt"] = "none"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    trust_coefficient: float = 1e-3
    clip_rate: bool = False
    weight_decay: float = 5e-4
    decay_biases: bool = False
    warmup_epochs: int = 0
    min_lr_factor: float = 0.0
    probe_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "learning_rate",
            *(["undecayed_learning_rate"] if self.undecayed_learning_rate is not None else []),
            "momentum",
            "weight_decay",
            "min_lr_factor",
            "trust_coefficient",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"optimizer.{name} must be finite and not negative, got {getattr(self, name)}"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be in [0, 1), got {self.betas}")
        if self.warmup_epochs < 0:
            raise ValueError(
                f"optimizer.warmup_epochs must not be negative, got {self.warmup_epochs}"
            )

    def scaled_learning_rate(self, batch: int) -> float:
        """The peak learning rate for a whole batch of `batch` images.

        Examples:
            >>> OptimizerSettings(learning_rate=0.3, scaling="linear").scaled_learning_rate(512)
            0.6
        """
        return self.learning_rate * self._factor(batch)

    def _factor(self, batch: int) -> float:
        return {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[self.scaling]

    def build(
        self, modules: Iterable[nn.Module], probe: nn.Module | None, batch: int
    ) -> torch.optim.Optimizer:
        """Make the optimizer of the trained modules.

        Args:
            modules: what is trained; parameters without gradient are left out.
            probe: the online linear probe.
            batch: images of a whole step.

        Returns:
            The optimizer, with groups of decayed, undecayed and, where there is one, the probe's
            parameters.
        """
        decayed, undecayed = (
            [parameter for parameter in group if parameter.requires_grad]
            for group in get_weight_decay_parameters(
                modules, decay_norm=self.decay_biases, decay_bias=self.decay_biases
            )
        )
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        if self.undecayed_learning_rate is not None:
            groups[1]["lr"] = self.undecayed_learning_rate * self._factor(batch)
        if probe is not None:
            rate = self.probe_learning_rate
            if rate is None:
                rate = 1e-3 if self.name == "adamw" else 0.1
            groups.append({"params": [*probe.parameters()], "weight_decay": 0.0, "lr": rate})
        rate = self.scaled_learning_rate(batch)
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=self.betas)
        if self.name == "lars":
            return LARS(
                groups,
                rate,
                momentum=self.momentum,
                trust_coefficient=self.trust_coefficient,
                clip_rate=self.clip_rate,
            )
        return torch.optim.SGD(groups, lr=rate, momentum=self.momentum)
