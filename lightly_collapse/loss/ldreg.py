"""LDReg: a regularizer that raises the local intrinsic dimensionality of representations."""

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse._checks import check_rows
from lightly_collapse._distributed import (
    check_same_shape,
    checked_on_all,
    gather_rows,
    gathering,
    mean_over_processes,
)
from lightly_collapse.functional.intrinsic_dimension import (
    Estimator,
    lid_mle_from_distances,
    lid_mom_from_distances,
)
from lightly_collapse.functional.neighbors import neighbor_distances

_ESTIMATORS = {"mom": lid_mom_from_distances, "mle": lid_mle_from_distances}
_NORMS = ("l1", "l2")

Norm = Literal["l1", "l2"]


class LDRegularizer(nn.Module):
    """Local dimensionality regularization: minus the mean log LID of the samples, weighted.

        l1: -weight * mean_i ln LID_i
        l2: -weight * sqrt(mean_i (ln LID_i)^2)

    With a `target_dimension` t the Fisher-Rao distance from it is lowered instead, and the LID is
    pulled towards t from either side:

        l1: weight * mean_i abs(ln(LID_i / t))
        l2: weight * sqrt(mean_i ln(LID_i / t)^2)

    Each sample's LID is estimated from its k nearest neighbours among all views stacked (of all
    processes when gathering) and the rows of `reference`; the sample itself is left out by its
    index, so that equal rows are neighbours at distance zero. Neighbours are constants: the
    gradient is that with respect to the sample. Add it to the self-supervised loss, on the
    representation before the projector. The official code takes abs(ln LID) in the l1 form, which
    is the same while every LID is above 1 and pushes a sample the other way once it is below.

    Args:
        weight: beta; the paper's settings are 0.01 for SimCLR, 0.005 for BYOL and MoCo, 5e-6 for
            MAE, from the eleventh epoch on.
        k: number of neighbours, at least 2 and below the number of rows to choose from. An
            incomplete last batch may be too small: use `drop_last=True` in the data loader.
        norm: `l1` or `l2`.
        estimator: `mom`, the method of moments, or `mle`, maximum likelihood.
        target_dimension: the LID to pull towards; None to raise it without limit.
        minimize: lower the LID instead of raising it, by the opposite sign (MinLID, a control
            experiment of the paper that degrades representations).
        gather_distributed: seek the neighbours in all processes. Value and gradient are then those
            of one process with the whole batch, given that gradients are averaged over processes,
            as DistributedDataParallel does.

    Raises:
        ValueError: if `weight` is negative or not finite, `k` is below 2, `norm` or `estimator`
            is unknown, `target_dimension` is not positive and finite, or is given together with
            `minimize`.

    Source: Huang et al., "LDReg: Local dimensionality regularized self-supervised learning", ICLR
    2024, arXiv 2401.10474, equations 1 to 3, appendix A (target dimension), appendix G.2 (MinLID),
    and its official code.

    Examples:
        >>> regularizer = LDRegularizer(weight=0.01, k=16)
        >>> out0, out1 = torch.randn(32, 512), torch.randn(32, 512)  # the backbone's features
        >>> penalty = regularizer(out0, out1)  # loss = loss + penalty
    """

    def __init__(
        self,
        weight: float = 0.01,
        k: int = 64,
        norm: Norm = "l1",
        estimator: Estimator = "mom",
        gather_distributed: bool = False,
        target_dimension: float | None = None,
        minimize: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {weight}")
        if k < 2:
            raise ValueError(f"k must be at least 2, got {k}: a LID compares two distances")
        if norm not in _NORMS:
            raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
        if estimator not in _ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}"
            )
        if target_dimension is not None and not 0 < target_dimension < float("inf"):
            raise ValueError(
                f"target_dimension must be positive and finite, got {target_dimension}"
            )
        if minimize and target_dimension is not None:
            raise ValueError(
                f"minimize must be False with a target_dimension, got {target_dimension}: the LID "
                "is either lowered without limit or pulled towards a value"
            )
        self.weight = weight
        self.k = k
        self.norm = norm
        self.estimator = estimator
        self.gather_distributed = gather_distributed
        self.target_dimension = target_dimension
        self.minimize = minimize

    @override
    def forward(self, *views: Tensor, reference: Tensor | None = None) -> Tensor:
        """Compute the weighted penalty of one view or more.

        Args:
            views: (n, d) features, a tensor a view; half types are computed in float32, autocast
                or not.
            reference: (m, d) further points among which neighbours are sought, without gradient,
                such as BYOL's momentum features.

        Returns:
            A scalar: usually negative, with `minimize` positive, with a target not negative.

        Raises:
            ValueError: if no view is given, a view is not 2-D, is empty or holds NaN or inf, the
                shapes differ between views or processes, or `k` is not below the number of rows
                to choose from.
        """
        gather = self.gather_distributed and gathering()
        if gather:
            x, further = checked_on_all(lambda: _checked(views, reference), views)
        else:
            x, further = _checked(views, reference)
        own = torch.arange(len(x), device=x.device)
        points = x.detach()
        if gather:
            check_same_shape(x, "views")
            own = own + dist.get_rank() * len(x)
            points = gather_rows(points)
        if further is not None:
            if gather:
                check_same_shape(further, "reference")
                further = gather_rows(further)
            points = torch.cat([points, further.to(points.dtype)])
        if self.k >= len(points):
            raise ValueError(
                f"k must be below the number of rows to choose from, {len(points)}, got {self.k}; "
                "take a larger batch, or drop_last=True in the data loader"
            )
        if self.weight == 0:  # a warm-up: zero, with a gradient, at no cost
            return (x * 0).sum()
        with torch.autocast(x.device.type, enabled=False):
            log_lid = _ESTIMATORS[self.estimator](neighbor_distances(x, points, self.k, own)).log()
            sign = -1.0
            if self.target_dimension is not None:
                sign, log_lid = 1.0, log_lid - math.log(self.target_dimension)
                log_lid = log_lid.abs() if self.norm == "l1" else log_lid
            elif self.minimize:
                sign = 1.0
            if self.norm == "l1":
                mean = log_lid.mean()
                return sign * self.weight * (mean_over_processes(mean) if gather else mean)
            return sign * self.weight * self._root_mean_square(log_lid, gather)

    @override
    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return (
            f"weight={self.weight}, k={self.k}, norm={self.norm!r}, "
            f"estimator={self.estimator!r}, gather_distributed={self.gather_distributed}, "
            f"target_dimension={self.target_dimension}, minimize={self.minimize}"
        )

    @staticmethod
    def _root_mean_square(log_lid: Tensor, gather: bool) -> Tensor:
        square = log_lid.square().mean()
        if gather:
            square = mean_over_processes(square)
        # The root's slope at zero is infinite; there the regularizer has nothing to push.
        return torch.where(square > 0, square, 1).sqrt() * (square > 0)


def _checked(views: tuple[Tensor, ...], reference: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not views:
        raise ValueError("views must hold at least one tensor of features, got none")
    rows = [check_rows(view, f"views[{i}]") for i, view in enumerate(views)]
    if any(view.shape != rows[0].shape for view in rows):
        raise ValueError(
            "views must have the same shape, got "
            + ", ".join(str(tuple(view.shape)) for view in views)
        )
    if reference is None:
        return torch.cat(rows), None
    further = check_rows(reference.detach(), "reference")
    if further.shape[1] != rows[0].shape[1]:
        raise ValueError(
            f"reference must have the width of the views, {rows[0].shape[1]}, "
            f"got {further.shape[1]}"
        )
    return torch.cat(rows), further
