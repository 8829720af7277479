"""DirectCLR: a contrastive loss on a sub-vector of the representation."""

import torch
from lightly.utils.dist import gather, rank
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from lightly_collapse._checks import check_rows, unit_rows
from lightly_collapse._distributed import (
    check_same_shape,
    checked_on_all,
    gathering,
    mean_over_processes,
)


class DirectCLRLoss(nn.Module):
    """Symmetric InfoNCE on the first `loss_dim` entries of the representation, with no projector.

    With z = r[:, :loss_dim] / ||r[:, :loss_dim]|| for the representations r of two views (zero, and
    without gradient, where those entries are all zero),

        L = (InfoNCE(z_0, z_1) + InfoNCE(z_1, z_0)) / 2,
        InfoNCE(a, b) = -1/N sum_i ln(exp(a_i . b_i / t) / sum_j exp(a_i . b_j / t)):

    the negatives of a sample are the *other* view's samples. The rest of r gets its rank through
    the residual connections of the encoder's last block. `lightly.loss.DirectCLRLoss` is the
    NT-Xent form of this loss, with negatives from both views; use it where a memory bank is
    wanted.

    Args:
        loss_dim: how many entries of the representation, from the first, the loss acts on.
        temperature: t, the scale of the logits.
        gather_distributed: take the negatives from all processes. Value and gradient are then
            those of one process with the whole batch, given that gradients are averaged over
            processes, as DistributedDataParallel does.

    Raises:
        ValueError: if `loss_dim` is below 1 or `temperature` is not positive and finite.

    Source: Jing, Vincent, LeCun and Tian, "Understanding dimensional collapse in contrastive
    self-supervised learning", ICLR 2022, arXiv 2110.09348, section 6, and its official code.

    Examples:
        >>> loss_fn = DirectCLRLoss(loss_dim=64, temperature=0.1)
        >>> out0, out1 = torch.randn(32, 512), torch.randn(32, 512)  # the backbone's features
        >>> loss = loss_fn(out0, out1)
    """

    def __init__(
        self, loss_dim: int = 360, temperature: float = 0.1, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        if loss_dim < 1:
            raise ValueError(f"loss_dim must be at least 1, got {loss_dim}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        self.loss_dim = loss_dim
        self.temperature = temperature
        self.gather_distributed = gather_distributed

    @override
    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Compute the loss of two views.

        Args:
            out0: (n, d) representations of the first view, d at least `loss_dim`; half types are
                computed in float32, autocast or not.
            out1: (n, d) representations of the second view, row by row of the same images.

        Returns:
            A scalar.

        Raises:
            ValueError: if the views are not 2-D, differ in shape, are empty, are narrower than
                `loss_dim` or hold NaN or inf, or differ in shape between the processes.
        """
        views, gathers = (out0, out1), self.gather_distributed and gathering()
        if gathers:
            out0, out1 = checked_on_all(lambda: self._checked(*views), views)
        else:
            out0, out1 = self._checked(*views)
        with torch.autocast(out0.device.type, enabled=False):
            z0 = unit_rows(out0[:, : self.loss_dim])
            z1 = unit_rows(out1[:, : self.loss_dim])
            if not gathers:
                logits = z0 @ z1.T / self.temperature
                targets = torch.arange(len(z0), device=z0.device)
                return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
            check_same_shape(out0, "out0")
            all0, all1 = torch.cat(gather(z0)), torch.cat(gather(z1))
            targets = torch.arange(len(z0), device=z0.device) + rank() * len(z0)
            loss = cross_entropy(z0 @ all1.T / self.temperature, targets)
            loss = (loss + cross_entropy(z1 @ all0.T / self.temperature, targets)) / 2
            return mean_over_processes(loss)

    def _checked(self, out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
        out0, out1 = check_rows(out0, "out0"), check_rows(out1, "out1")
        if out0.shape != out1.shape:
            raise ValueError(
                "out0 and out1 must have the same shape, "
                f"got {tuple(out0.shape)} and {tuple(out1.shape)}"
            )
        if self.loss_dim > out0.shape[1]:
            raise ValueError(
                f"loss_dim must be at most the width of the features, {out0.shape[1]}, "
                f"got {self.loss_dim}"
            )
        return out0, out1

    @override
    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return (
            f"loss_dim={self.loss_dim}, temperature={self.temperature}, "
            f"gather_distributed={self.gather_distributed}"
        )
