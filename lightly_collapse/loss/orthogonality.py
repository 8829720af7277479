"""Orthogonality regularization of the weights of an encoder."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightly_collapse._checks import as_float
from lightly_collapse._layers import LayerWeight, find_weights, select_weights
from lightly_collapse.functional.orthogonality import (
    PenaltyKind,
    check_kind,
    orthogonality_penalty,
    towards_orthonormal,
    tracked_spectral_penalties,
    weight_matrix,
)
from lightly_collapse.functional.spectral_norm import initial_basis

DECOUPLED_RATE = 0.1
"""Part of a Newton-Schulz step that follows a step of the optimizer with `weight="auto"`."""


class FrozenWeightsError(ValueError):
    """All weights to regularize are frozen; they may thaw later in the training.

    Examples:
        >>> OrthogonalityRegularizer(nn.Linear(4, 2).requires_grad_(False))
        Traceback (most recent call last):
        lightly_collapse.loss.orthogonality.FrozenWeightsError: ...
    """


class OrthogonalityRegularizer(nn.Module):
    """Weighted sum, over a module's layers, of their weights' distance from orthonormal filters.

    Add `forward()` to the self-supervised loss. The penalty acts on the weight of every `Linear`,
    `Conv1d/2d/3d` and `ConvTranspose1d/2d/3d` of the module and on the input projections of
    `MultiheadAttention`, read as one vector per filter, each group of a grouped convolution by
    itself; norms, embeddings, biases and parameters that do not require a gradient are left out.
    The module's parameters are looked at, not owned: they appear neither in `parameters()` nor in
    `state_dict()` of the regularizer. Weights sharded by FSDP2 are gathered layer by layer.

    `srip` is computed by matrix-vector products alone, on vectors that follow the weights from one
    call to the next; they are non-persistent buffers. It is never above the true penalty but for
    rounding, and on weights that move slowly within 1 % below it. Its gradient cannot be
    differentiated again.

    Args:
        module: the encoder to regularize.
        kind: `so` (soft orthogonality), `dso` (double-sided), `mc` (mutual coherence), `srip`
            (spectral restricted isometry) or `conv` (convolutional orthogonality), or, as controls
            of an experiment, `norms` (the filters' norms alone) or `shape` (whatever the scale);
            see `lightly_collapse.functional.orthogonality_penalty`.
        weight: gamma; reasonable starting points are 1e-7 to 1e-5 for `so`, 1e-5 to 1e-3 for
            `srip`. The attribute may be set at any time, by
            `lightly_collapse.callbacks.RegularizerSchedule` for example. `auto` needs no sweep: it
            adds nothing to the loss, but moves the weights a tenth of a Newton-Schulz step after
            every step of the optimizer that `attach` is given. For `so` alone.
        include: regular expressions; only parameters in whose name one of them is found (as
            `layer4.0.conv1.weight`, by `re.search`) are regularized.
        exclude: regular expressions; parameters in whose name one of them is found are left out.
        split_qkv: take queries, keys and values of a fused weight apart: linear layers named
            `qkv` (timm) or `in_proj`, and `in_proj_weight` of `MultiheadAttention`. What one
            computes need not be orthogonal to what another does.

    Raises:
        ValueError: if `kind` is unknown, `weight` is negative or not finite, a pattern is not a
            regular expression or matches nothing, there is nothing to regularize, or a fused
            weight to be split has rows that do not divide by three.
        FrozenWeightsError: a ValueError, if all weights to regularize are frozen.

    Source: He, Du and Ma, "Preventing dimensional collapse in self-supervised learning via
    orthogonality regularization", NeurIPS 2024, arXiv 2411.00392; Bansal, Chen and Wang, NeurIPS
    2018, arXiv 1810.09102; Wang et al., CVPR 2020, arXiv 1911.12207.

    Examples:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16, 8))
        >>> regularizer = OrthogonalityRegularizer(backbone, kind="so", weight=1e-6)
        >>> penalty = regularizer()  # loss = loss + penalty
        >>> list(regularizer.residuals())
        ['0.weight', '2.weight']
    """

    def __init__(
        self,
        module: nn.Module,
        kind: PenaltyKind = "so",
        weight: float | Literal["auto"] = 1e-6,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        split_qkv: bool = False,
    ) -> None:
        super().__init__()
        check_kind(kind)
        if weight == "auto":
            if kind != "so":
                raise ValueError(f"weight auto is for the kind so alone, got {kind}")
        elif isinstance(weight, str) or not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, or auto, got {weight!r}")
        self.kind = kind
        self.weight = weight
        self.factor = 1.0
        found = select_weights(find_weights(module), include, exclude)
        if not any(w.is_trainable for w in found):
            raise FrozenWeightsError(
                "module must have a weight that requires a gradient, got only frozen ones: "
                + ", ".join(w.name for w in found)
            )
        # Layers in a list are no submodules: the weights stay out of this module's state, and a
        # deep copy or a pickle of both together keeps them the same object.
        self._weights: list[LayerWeight] = []
        for w in found:
            self._weights.extend(w.split() if split_qkv and w.is_fused_qkv else [w])
        if kind == "srip":
            for i in range(len(self._weights)):
                self.register_buffer(f"_basis_{i}", torch.empty(0), persistent=False)

    @override
    def forward(self) -> Tensor:
        """Compute the weighted penalty.

        Returns:
            A scalar, float32 or the weights' float64, with a gradient.

        Raises:
            ValueError: if every weight has been frozen since, one is sharded and there is no
                process group to gather it from, or the weight is `auto`.
        """
        return self._number() * self._total([p for _, p in self._penalties(self._weights)])

    def _number(self) -> float:
        if isinstance(self.weight, str):
            raise ValueError(
                "weight auto is no part of the loss: attach() the regularizer to the optimizer"
            )
        return self.weight

    def accumulate_gradient(
        self, parameters: Iterable[Tensor] | None = None, scale: float = 1.0
    ) -> Tensor | None:
        """Add the gradient of the penalty to `.grad`, outside of any graph and of any hook.

        An alternative to adding `forward()` to the loss, to be called between the backward pass
        and the optimizer's step; under gradient accumulation once before each step.

        Args:
            parameters: those to give a gradient, such as an optimizer's; all by default.
            scale: what to multiply the gradient by, such as the loss scale of gradients that have
                not been unscaled.

        Returns:
            The unweighted penalty of the weights that depend on those parameters, without
            gradient, or None if there is no such weight.

        Raises:
            ValueError: as `forward`, and if `scale` is not positive and finite, or a weight is
                computed from parameters by a hook that is not torch's pruning, `weight_norm` or
                `spectral_norm`.

        Examples:
            >>> layer = nn.Linear(4, 2)
            >>> OrthogonalityRegularizer(layer, weight=0.1).accumulate_gradient().ndim
            0
            >>> layer.weight.grad.shape
            torch.Size([2, 4])
        """
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {scale}")
        wanted = None if parameters is None else {id(p) for p in parameters}
        receivers = {
            w: [p for p in w.parameters if p.requires_grad and (wanted is None or id(p) in wanted)]
            for w in self._weights
        }
        for w, found in receivers.items():
            if not all(p.is_leaf for p in found):
                raise ValueError(
                    f"module must hold parameters that can be given a gradient, but {w.name} is "
                    "computed by a hook of its layer; exclude it or add forward() to the loss"
                )
        weights = [w for w in self._weights if receivers[w]]
        if not weights and wanted is not None:
            return None
        with torch.enable_grad():
            penalties = self._penalties(weights)
        # Layer by layer, so that one gradient at a time is in memory.
        for w, penalty in penalties:
            grads = torch.autograd.grad(penalty * (self._number() * scale), receivers[w])
            for p, grad in zip(receivers[w], grads, strict=True):
                p.grad = grad if p.grad is None else p.grad.add_(grad)
        return self._total([penalty.detach() for _, penalty in penalties])

    @torch.no_grad()
    def initialize(self) -> None:
        """Replace every regularized weight by a random one with orthonormal filters.

        Of more filters than inputs the columns are made orthonormal. With a weight of 0 this is
        orthogonal initialisation alone, without a penalty.

        Raises:
            ValueError: if a weight is computed from others by a hook or a parametrization.

        Examples:
            >>> layer = nn.Linear(8, 4)
            >>> regularizer = OrthogonalityRegularizer(layer)
            >>> regularizer.initialize()
            >>> round(regularizer.residuals()["weight"], 5)
            0.0
        """
        for w in self._weights:
            # A view of the parameter, so that writing to it writes to the layer.
            weight, matrix = self._own(w)
            filters = matrix if matrix.ndim == 3 else matrix[None]
            drawn = torch.stack([nn.init.orthogonal_(torch.empty_like(f)) for f in filters])
            weight.copy_(_as_weight(drawn, weight, w))

    @torch.no_grad()
    def decoupled_step(self, rate: float | Callable[[Tensor], float] = DECOUPLED_RATE) -> None:
        """Move every regularized weight a part of a Newton-Schulz step towards orthonormal filters.

        W <- W - rate / 2 (G - I) W, with (G - I) W the gradient of `so` over 4; a rate of 1 is the
        whole step W <- (3 I - G) W / 2, which converges to the nearest orthonormal filters. No
        weight moves by more than its own norm, far from them.

        Args:
            rate: of all weights, or from a parameter to its rate.

        Raises:
            ValueError: if a weight is computed from others by a hook or a parametrization, or is
                sharded.

        Source: Bjoerck and Bowie, SIAM J. Numerical Analysis 8, 1971 (the iteration); Loshchilov
        and Hutter, ICLR 2019, arXiv 1711.05101 (decoupling from the gradient).

        Examples:
            >>> layer = nn.Linear(4, 4, bias=False)
            >>> regularizer = OrthogonalityRegularizer(layer, weight="auto")
            >>> for _ in range(50):
            ...     regularizer.decoupled_step(rate=1.0)
            >>> regularizer.residuals()["weight"] < 1e-6
            True
        """
        for w in self._weights:
            if not w.is_trainable:
                continue
            weight, matrix = self._own(w)
            share = rate(w.parameters[0]) if callable(rate) else rate
            if share == 0:
                continue
            with torch.autocast(weight.device.type, enabled=False):
                filters = as_float(matrix if matrix.ndim == 3 else matrix[None])
                moved = 0.5 * share * towards_orthonormal(filters)
                norms = (x.flatten(1).norm(dim=1)[:, None, None] for x in (moved, filters))
                step, own = norms
                moved = moved / (step / own.clamp(min=torch.finfo(own.dtype).tiny)).clamp(min=1)
            weight.sub_(_as_weight(moved, weight, w).to(weight.dtype))

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Let `decoupled_step` follow every step of an optimizer, for its parameters.

        The rate is `DECOUPLED_RATE` times the learning rate as a share of its peak, which is read
        off the optimizer's groups (`max_lr`, or `initial_lr`, as PyTorch's schedulers write them);
        without either the whole rate is taken. There is no state: a resumed training goes on alike.
        A step that a gradient scaler skips is not followed.

        Args:
            optimizer: any of PyTorch's form.

        Returns:
            A handle; its `remove()` ends it.

        Examples:
            >>> layer = nn.Linear(8, 4)
            >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
            >>> handle = OrthogonalityRegularizer(layer, weight="auto").attach(optimizer)
            >>> layer(torch.rand(2, 8)).sum().backward()
            >>> optimizer.step()
        """

        def follow(optimizer: Optimizer, *_: Any) -> None:
            shares: dict[int, float] = {}
            for group in optimizer.param_groups:
                peak = group.get("max_lr", group.get("initial_lr"))
                share = 1.0 if not peak else min(float(group["lr"]) / float(peak), 1.0)
                shares |= {id(p): share for p in group["params"]}
            self.decoupled_step(lambda p: DECOUPLED_RATE * self.factor * shares.get(id(p), 0.0))

        return optimizer.register_step_post_hook(follow)

    def _own(self, w: LayerWeight) -> tuple[Tensor, Tensor]:
        """The weight that a layer holds itself, and as a matrix.

        Raises:
            ValueError: if it is computed, or sharded.
        """
        parameter = getattr(w.layer, w.attribute)
        if any(p is not parameter for p in w.parameters) or hasattr(parameter, "full_tensor"):
            raise ValueError(
                f"module must hold its weights themselves to have them set, but {w.name} is "
                "computed by a hook or a parametrization, or sharded; exclude it"
            )
        weight = w.tensor()
        return weight, weight_matrix(weight, w.groups, w.transposed)

    @torch.no_grad()
    def residuals(self) -> dict[str, float]:
        """The unweighted penalty of every layer.

        Returns:
            From the name of the parameter in the module to its penalty; the thirds of a fused
            weight are told apart as `name[q]`, `name[k]` and `name[v]`.
        """
        return {w.name: penalty.item() for w, penalty in self._penalties(self._weights)}

    @override
    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return f"kind={self.kind!r}, weight={self.weight}, layers={len(self._weights)}"

    @staticmethod
    def _total(penalties: list[Tensor]) -> Tensor:
        if not penalties:
            raise FrozenWeightsError(
                "module must have a weight that requires a gradient, all are frozen"
            )
        device = penalties[0].device
        return torch.stack([penalty.to(device) for penalty in penalties]).sum()

    def _penalties(self, weights: list[LayerWeight]) -> list[tuple[LayerWeight, Tensor]]:
        # Asked at every call: training scripts freeze, thaw and replace parameters.
        weights = [w for w in weights if w.is_trainable]
        if self.kind == "srip":
            return list(zip(weights, self._tracked(weights), strict=True))
        return [
            (
                w,
                orthogonality_penalty(
                    w.tensor(), self.kind, w.groups, w.transposed, w.stride, w.dilation
                ),
            )
            for w in weights
        ]

    def _tracked(self, weights: list[LayerWeight]) -> list[Tensor]:
        names = [f"_basis_{i}" for i, w in enumerate(self._weights) if w in weights]
        matrices = [as_float(weight_matrix(w.tensor(), w.groups, w.transposed)) for w in weights]
        bases = []
        for name, matrix in zip(names, matrices, strict=True):
            basis, new = self.get_buffer(name), initial_basis(matrix)
            fits = basis.shape[:-1] == new.shape[:-1]  # or it is the first call, or another layer
            bases.append(basis.to(matrix) if fits else new)
        penalties, bases = tracked_spectral_penalties(matrices, bases)
        for name, basis in zip(names, bases, strict=True):
            setattr(self, name, basis)
        return penalties


def _as_weight(matrices: Tensor, weight: Tensor, w: LayerWeight) -> Tensor:
    """(groups, filters, fan-in) matrices in the shape of the weight they came from."""
    if w.transposed:
        shape = (w.groups, weight.shape[1], -1, *weight.shape[2:])
        matrices = matrices.reshape(shape).transpose(1, 2)
    return matrices.reshape(weight.shape)
