"""Heads of the DirectCLR paper."""

from torch import Tensor, nn


class DirectCLRHead(nn.Module):
    """The first `dim` entries of the representation: DirectCLR's projector, without parameters.

    With it, any loss that takes embeddings becomes its DirectCLR form, for example
    `NTXentLoss()(head(r0), head(r1))`; `DirectCLRLoss` takes the representation itself and needs
    no head.

    Args:
        dim: d_0, how many entries to keep; 360 of ResNet-50's 2048 in the paper.

    Raises:
        ValueError: if `dim` is below 1.

    Source: Jing, Vincent, LeCun and Tian, ICLR 2022, arXiv 2110.09348, section 6.

    Examples:
        >>> import torch
        >>> DirectCLRHead(dim=16)(torch.randn(4, 128)).shape
        torch.Size([4, 16])
    """

    def __init__(self, dim: int = 360) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Cut the representation.

        Args:
            x: (n, d) representations, d at least `dim`.

        Returns:
            (n, dim), a view of `x`.

        Raises:
            ValueError: if `x` is not 2-D or narrower than `dim`.
        """
        if x.ndim != 2 or x.shape[1] < self.dim:
            raise ValueError(
                f"x must be (samples, features) with {self.dim} features or more, "
                f"got shape {tuple(x.shape)}"
            )
        return x[:, : self.dim]

    def extra_repr(self) -> str:
        """The setting, as it stands in the module's printed form."""
        return f"dim={self.dim}"
