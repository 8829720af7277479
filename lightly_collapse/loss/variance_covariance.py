"""Variance and covariance regularization: whitening without a decomposition."""

import torch
from lightly.utils.dist import gather
from torch import Tensor, nn
from typing_extensions import override

from lightly_collapse._checks import check_rows
from lightly_collapse._distributed import check_same_shape, checked_on_all, gathering
from lightly_collapse.functional.covariance import covariance_penalty, variance_penalty


class VarianceCovarianceRegularizer(nn.Module):
    """The variance and covariance terms of VICReg, to add to any self-supervised loss.

    With C the covariance matrix of a view's features (divisor n - 1), d their width and V views,

        v(Z) = 1/d sum_j max(0, 1 - sqrt(C_jj + eps)),    c(Z) = 1/d sum_{i != j} C_ij^2,
        L = variance_weight * 1/V sum_views v(Z) + covariance_weight * sum_views c(Z).

    v is averaged and c summed over the views, as in VICReg's official code: for two views L is
    `lightly.loss.VICRegLoss` of the same weights without its invariance term.

    Args:
        variance_weight: of v; 25 in VICReg.
        covariance_weight: of c; 1 in VICReg.
        eps: added to the variances under the root.
        gather_distributed: take the covariance over all processes. Value and gradient are then
            those of one process with the whole batch, given that gradients are averaged over
            processes, as DistributedDataParallel does.

    Raises:
        ValueError: if a weight is negative or not finite, or `eps` is not positive and finite.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, equations 4 to 6, after Bardes,
    Ponce and LeCun, "VICReg", ICLR 2022, arXiv 2105.04906, equations 1 to 4.

    Examples:
        >>> regularizer = VarianceCovarianceRegularizer(variance_weight=1.0, covariance_weight=0.04)
        >>> out0, out1 = torch.randn(32, 512), torch.randn(32, 512)  # the backbone's features
        >>> penalty = regularizer(out0, out1)  # loss = loss + penalty
    """

    def __init__(
        self,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        eps: float = 1e-4,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        for name, weight in (
            ("variance_weight", variance_weight),
            ("covariance_weight", covariance_weight),
        ):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {weight}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps must be positive and finite, got {eps}")
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight
        self.eps = eps
        self.gather_distributed = gather_distributed

    @override
    def forward(self, *views: Tensor) -> Tensor:
        """Compute the weighted penalty of one view or more.

        Args:
            views: (n, d) features, a tensor a view, of at least two rows (over all processes when
                gathering); half types are computed in float32, autocast or not.

        Returns:
            A scalar, not negative.

        Raises:
            ValueError: if no view is given, a view is not 2-D, has too few rows or holds NaN or
                inf, or its shape differs between processes.
        """
        gathers = self.gather_distributed and gathering()
        if not gathers:
            rows = _checked(views, minimum=2)
        else:
            rows = checked_on_all(lambda: _checked(views, minimum=1), views)
            for i, view in enumerate(rows):
                check_same_shape(view, f"views[{i}]")
            rows = [torch.cat(gather(view)) for view in rows]
        penalty = rows[0].new_zeros(())
        for z in rows:
            if self.variance_weight:
                share = self.variance_weight / len(rows)
                penalty = penalty + share * variance_penalty(z, eps=self.eps)
            if self.covariance_weight:
                penalty = penalty + self.covariance_weight * covariance_penalty(z)
        if not (self.variance_weight or self.covariance_weight):  # off, with a gradient of zero
            return sum(((z * 0).sum() for z in rows), penalty)
        return penalty

    @override
    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return (
            f"variance_weight={self.variance_weight}, covariance_weight={self.covariance_weight}, "
            f"eps={self.eps}, gather_distributed={self.gather_distributed}"
        )


def _checked(views: tuple[Tensor, ...], minimum: int) -> list[Tensor]:
    if not views:
        raise ValueError("views must hold at least one tensor of features, got none")
    return [check_rows(view, f"views[{i}]", minimum) for i, view in enumerate(views)]
