"""Heads of the DirectCLR paper."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from typing_extensions import override

_KINDS = ("linear", "orthogonal", "diagonal", "low_rank", "low_rank_diagonal")


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
        >>> DirectCLRHead(dim=16)(torch.randn(4, 128)).shape
        torch.Size([4, 16])
    """

    def __init__(self, dim: int = 360) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    @override
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

    @override
    def extra_repr(self) -> str:
        """The setting, as it stands in the module's printed form."""
        return f"dim={self.dim}"


class LinearProjectionHead(nn.Module):
    """A linear projector of one of the kinds that show what a projector is needed for.

    | kind                | z =                                | trained                          |
    | ------------------- | ---------------------------------- | -------------------------------- |
    | `linear`            | W x                                | W                                |
    | `orthogonal`        | W x with orthonormal rows (columns | W, by                            |
    |                     | where output_dim > input_dim)      | torch.nn.utils.parametrizations  |
    | `diagonal`          | d_i x_i for i < output_dim         | d, from ones                     |
    | `low_rank`          | W x with random orthonormal rows   | nothing: a projection of rank    |
    |                     |                                    | output_dim, the same for ever    |
    | `low_rank_diagonal` | x_i for i < output_dim             | nothing: what `DirectCLRHead` is |

    None has a bias. By the paper's propositions a linear projector need only be diagonal and only
    of low rank, and the last, which is both, does as well as the first without a parameter.

    Args:
        input_dim: width of the representation.
        output_dim: width of the embedding; for all but `linear` and `orthogonal` at most
            `input_dim`.
        kind: see above.

    Raises:
        ValueError: if `kind` is unknown, a width is below 1, or `output_dim` is too large for it.

    Source: Jing, Vincent, LeCun and Tian, ICLR 2022, arXiv 2110.09348, section 6 (propositions 1
    and 2, and the study of projectors).

    Examples:
        >>> head = LinearProjectionHead(128, 16, kind="low_rank_diagonal")
        >>> head(torch.randn(4, 128)).shape, len(list(head.parameters()))
        (torch.Size([4, 16]), 0)
    """

    projection: Tensor
    diagonal: Tensor

    def __init__(self, input_dim: int, output_dim: int, kind: str = "linear") -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if input_dim < 1 or output_dim < 1:
            raise ValueError(
                f"input_dim and output_dim must be at least 1, got {input_dim} and {output_dim}"
            )
        if kind not in ("linear", "orthogonal") and output_dim > input_dim:
            raise ValueError(
                f"output_dim must be at most input_dim, {input_dim}, for kind {kind!r}, "
                f"got {output_dim}"
            )
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.kind = kind
        if kind in ("linear", "orthogonal"):
            linear = nn.Linear(input_dim, output_dim, bias=False)
            self.linear = orthogonal(linear) if kind == "orthogonal" else linear
        elif kind == "diagonal":
            self.diagonal = nn.Parameter(torch.ones(output_dim))
        elif kind == "low_rank":
            projection = torch.empty(output_dim, input_dim)
            self.register_buffer("projection", nn.init.orthogonal_(projection))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Project.

        Args:
            x: (n, input_dim) representations.

        Returns:
            (n, output_dim).

        Raises:
            ValueError: if `x` is not 2-D of width `input_dim`.
        """
        if x.ndim != 2 or x.shape[1] != self.input_dim:
            raise ValueError(
                f"x must be (samples, {self.input_dim} features), got shape {tuple(x.shape)}"
            )
        if self.kind in ("linear", "orthogonal"):
            return self.linear(x)
        if self.kind == "low_rank":
            return nn.functional.linear(x, self.projection)
        x = x[:, : self.output_dim]
        return x * self.diagonal if self.kind == "diagonal" else x

    @override
    def extra_repr(self) -> str:
        """The settings, as they stand in the module's printed form."""
        return f"input_dim={self.input_dim}, output_dim={self.output_dim}, kind={self.kind!r}"
