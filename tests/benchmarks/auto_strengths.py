"""Candidates for the strength of a regularizer, for `auto_weight`."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightly_collapse._layers import LayerWeight, find_weights
from lightly_collapse.functional.orthogonality import towards_orthonormal, weight_matrix
from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer

_SMOOTHING = 0.9


class Run(NamedTuple):
    """What a strength may know of a training."""

    method: nn.Module
    encoder: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[int], float]


class Strength:
    """No regularizer."""

    chosen: Any = None

    def start(self, run: Run) -> None:
        """Before the first step."""

    def loss(self, loss: Tensor, features: Tensor) -> Tensor:
        """The loss to differentiate, from the objective and the representations of two views."""
        return loss

    def before_step(self) -> None:
        """Between the backward pass and the optimizer's step."""

    def after_step(self, factor: float) -> None:
        """After the optimizer's step; `factor` is the learning rate as a share of its peak."""


class Fixed(Strength):
    """SO at a weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def start(self, run: Run) -> None:
        """Find the weights."""
        self._regularizer = OrthogonalityRegularizer(run.encoder, weight=self.weight)

    def before_step(self) -> None:
        """Add the gradient."""
        self._regularizer.weight = self.weight
        self._regularizer.accumulate_gradient()


def _matrix(w: LayerWeight) -> Tensor:
    return weight_matrix(w.tensor(), w.groups, w.transposed)


class _ByLayer(Strength):
    def start(self, run: Run) -> None:
        """Find the weights."""
        self._weights = find_weights(run.encoder)
        self._means: dict[Any, Tensor] = {}

    def _smooth(self, key: Any, value: Tensor) -> Tensor:
        """A running mean without the bias of its start."""
        mean, weight = self._means.get(key, (torch.zeros(()), 0.0))
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        self._means[key] = (mean, weight)  # type: ignore[assignment]
        return mean / weight


class GradientRatio(_ByLayer):
    """SO's gradient kept at a share of the objective's, by layer or as a whole."""

    def __init__(self, share: float, whole: bool = False) -> None:
        self.share, self.whole = share, whole

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient."""
        parameters = [w.parameters[0] for w in self._weights]
        pulls = [
            towards_orthonormal(_matrix(w)).reshape(p.shape)
            for w, p in zip(self._weights, parameters, strict=True)
        ]
        own = torch.stack([p.grad.norm() for p in parameters])
        norms = torch.stack([pull.norm() for pull in pulls])
        if self.whole:
            own, norms = own.norm().expand(len(own)), norms.norm().expand(len(norms))
        scale = self.share * self._smooth("own", own) / self._smooth("pull", norms).clamp(min=1e-12)
        for p, pull, s in zip(parameters, pulls, scale, strict=True):
            p.grad.add_(pull * s)


class ResidualRatio(_ByLayer):
    """SO's gradient at the objective's norm where the residual is as large as the weight."""

    def __init__(self, share: float) -> None:
        self.share = share

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient."""
        for i, w in enumerate(self._weights):
            p = w.parameters[0]
            norm = self._smooth(i, p.grad.norm())
            pull = towards_orthonormal(_matrix(w)).reshape(p.shape)
            p.grad.add_(pull * (self.share * norm / p.norm().clamp(min=1e-12)))


class Decoupled(_ByLayer):
    """A part of a Newton-Schulz step after the optimizer's, scaled by the schedule."""

    def __init__(self, rate: float, keep_scale: bool = False) -> None:
        self.rate, self.keep_scale = rate, keep_scale

    @torch.no_grad()
    def after_step(self, factor: float) -> None:
        """Move the weights."""
        for w in self._weights:
            self._move(w, self.rate * factor)

    def _move(self, w: LayerWeight, rate: Tensor | float) -> None:
        matrix = _matrix(w)
        scale: Tensor | float = 1.0
        if self.keep_scale:
            scale = (matrix.square().sum() / min(matrix.shape[-2:])).sqrt()
        moved = scale * towards_orthonormal(matrix / scale)
        # At most the whole of the weight, where the largest singular value is far above 1.
        length = (0.5 * rate * moved.norm() / matrix.norm().clamp(min=1e-12)).clamp(min=1)
        w.parameters[0].sub_((0.5 * rate * moved / length).reshape(w.parameters[0].shape))


class UpdateRatio(Decoupled):
    """As `Decoupled`, the rate a multiple of the optimizer's relative update."""

    def __init__(self, share: float, keep_scale: bool = False) -> None:
        super().__init__(share, keep_scale)

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep the weights."""
        self._before = [w.parameters[0].detach().clone() for w in self._weights]

    @torch.no_grad()
    def after_step(self, factor: float) -> None:
        """Move the weights."""
        for w, before in zip(self._weights, self._before, strict=True):
            update = (w.parameters[0] - before).norm() / before.norm().clamp(min=1e-12)
            self._move(w, 2 * self.rate * update)


class Finder(Fixed):
    """The largest weight after whose trial the objective is within a share of the best one's."""

    def __init__(self, weights: Sequence[float], steps: int = 15, share: float = 0.02) -> None:
        super().__init__(0.0)
        self.weights, self.steps, self.share = weights, steps, share

    def start(self, run: Run) -> None:
        """Make the trials, each from the same state."""
        super().start(run)
        state = deepcopy((run.method.state_dict(), run.optimizer.state_dict()))
        random = torch.get_rng_state()
        ends = {}
        for weight in (0.0, *self.weights):
            self.weight = weight
            try:
                losses = [run.step(number) for number in range(self.steps)]
                ends[weight] = sum(losses[-5:]) / 5
            except FloatingPointError:
                pass
            run.method.load_state_dict(state[0])
            run.optimizer.load_state_dict(deepcopy(state[1]))
            torch.set_rng_state(random)
        within = [w for w, end in ends.items() if end <= ends[0.0] * (1 + self.share)]
        self.weight = self.chosen = max(within)


class LDReg(Strength):
    """LDReg at a weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._penalty = LDRegularizer(1.0, k=32)

    def loss(self, loss: Tensor, features: Tensor) -> Tensor:
        """Add the penalty."""
        return loss + self.weight * self._penalty(*features.chunk(2))


class LDRegRatio(LDReg):
    """LDReg's gradient at the representations kept at a share of the objective's."""

    def __init__(self, share: float) -> None:
        super().__init__(0.0)
        self.share = share
        self._mean: tuple[float, float] | None = None

    def loss(self, loss: Tensor, features: Tensor) -> Tensor:
        """Add the penalty at the weight that makes the share."""
        penalty = self._penalty(*features.chunk(2))
        (own,) = torch.autograd.grad(loss, features, retain_graph=True)
        (pull,) = torch.autograd.grad(penalty, features, retain_graph=True)
        norms = (float(own.norm()), float(pull.norm()))
        old = self._mean or norms
        self._mean = tuple(  # type: ignore[assignment]
            _SMOOTHING * a + (1 - _SMOOTHING) * b for a, b in zip(old, norms, strict=True)
        )
        assert self._mean is not None
        self.chosen = self.share * self._mean[0] / max(self._mean[1], 1e-12)
        return loss + self.chosen * penalty
