"""Two representations of the same samples compared, as metrics of a stream of pairs of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse import functional
from lightly_collapse._checks import on_sphere
from lightly_collapse.functional.pairs import block_norms, cka_of_moments, squared_norms
from lightly_collapse.metrics._mergeable import (
    MergeableMetric,
    NanStrategy,
    exact_arithmetic,
)
from lightly_collapse.metrics._reservoir import ReservoirMetric
from lightly_collapse.metrics._scatter import ScatterMetric


class CKA(ScatterMetric):
    """Linear CKA of all pairs of rows in O((d + e)^2) memory: see `functional.cka`.

    Exact for any batches, order and sharding: beside the scatter matrix of the rows [x, y] it
    keeps the third and fourth moments that the unbiased estimate needs, which merge as that does.

    Args:
        debiased: take the unbiased estimate, which needs four rows.
        nan_strategy: `error`, or `drop` pairs that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = CKA()
        >>> for _ in range(4):
        ...     x = torch.randn(32, 8, generator=g)
        ...     metric.update(x, x @ torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
        >>> 0 < metric.compute() < 1
        tensor(True)
    """

    higher_is_better = True

    width: Tensor
    cubes: Tensor
    squares: Tensor

    def __init__(
        self, debiased: bool = True, nan_strategy: NanStrategy = "error", **kwargs: Any
    ) -> None:
        super().__init__(nan_strategy, (int(debiased),), **kwargs)
        self.debiased = debiased
        self._add("width", torch.tensor(0))
        # Sums over the centred rows z = [x, y]: |x|^2 z and |y|^2 z; |x|^4, |x|^2 |y|^2, |y|^4.
        self._add("cubes", torch.zeros(2, 0, dtype=torch.float64))
        self._add("squares", torch.zeros(2, 2, dtype=torch.float64))

    @override
    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Take in a batch.

        Args:
            x: (n, d) rows.
            y: (n, e) rows of the same samples.

        Raises:
            ValueError: if they are not 2-D, are empty, differ in rows, are not as wide as before,
                or hold NaN or inf and `nan_strategy` is `error`.
        """
        z = _joined(x, y)
        self._check_width(z)
        if self.mean.numel() and int(self.width) != x.shape[1]:
            raise ValueError(f"x must have {int(self.width)} columns, got {x.shape[1]}")
        z = self._finite_rows(z, "x and y")
        if not z.shape[0]:
            return
        with exact_arithmetic(z.device):
            z = z.double()
            mean = z.mean(dim=0)
            z = z - mean
            norms = squared_norms(z, x.shape[1])
            self._set_states(
                self._merge(
                    [
                        {
                            "rows": torch.tensor(z.shape[0], device=z.device),
                            "dropped": torch.zeros_like(self.dropped),
                            "settings": self.settings,
                            "mean": mean,
                            "scatter": z.T @ z,
                            "width": torch.tensor(x.shape[1], device=z.device),
                            "cubes": norms @ z,
                            "squares": norms @ norms.T,
                        },
                        self.tensor_states(),
                    ]
                )
            )

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        merged = super()._merge(states)
        filled = [s for s in states if s["mean"].numel()]
        if not filled:
            return merged | {n: getattr(self, n) for n in ("width", "cubes", "squares")}
        widths = {int(s["width"]) for s in filled}
        if len(widths) > 1:
            raise ValueError(f"x must have one width in all that is merged, got {sorted(widths)}")
        moved = [_moved(s, s["mean"] - merged["mean"]) for s in filled]
        return merged | {
            "width": filled[0]["width"],
            "cubes": torch.stack([cubes for cubes, _ in moved]).sum(dim=0),
            "squares": torch.stack([squares for _, squares in moved]).sum(dim=0),
        }

    @override
    def compute(self) -> Tensor:
        """CKA of all rows; nan where a representation has no variance.

        Raises:
            ValueError: if there are too few rows.
        """
        self._check_updated()
        n, minimum = int(self.rows), 4 if self.debiased else 2
        if n < minimum:
            raise ValueError(f"CKA.compute needs at least {minimum} rows, got {n}")
        width = int(self.width)
        scatter = _full(self.scatter)
        diagonal = scatter.diagonal()
        traces = torch.stack([diagonal[:width].sum(), diagonal[width:].sum()])
        products = block_norms(scatter, width)
        return self._output(
            cka_of_moments(n, products, traces, self.squares, debiased=self.debiased)
        )


def _full(scatter: Tensor) -> Tensor:
    upper = scatter.triu()
    return upper + upper.triu(1).mT


def _moved(state: Mapping[str, Tensor], shift: Tensor) -> tuple[Tensor, Tensor]:
    """`cubes` and `squares` of centred rows z about another point: those of z + shift.

    |x + s|^2 = |x|^2 + 2 s.x + |s|^2, multiplied out; the sums of z alone are zero.
    """
    n, width, scatter = state["rows"].double(), int(state["width"]), _full(state["scatter"])
    halves = shift.new_zeros(2, shift.numel())
    halves[0, :width], halves[1, width:] = shift[:width], shift[width:]
    diagonal = scatter.diagonal()
    traces = torch.stack([diagonal[:width].sum(), diagonal[width:].sum()])
    lengths = halves.square().sum(dim=1)
    lines = 2 * halves @ scatter  # sums of 2 (s.x) z
    cubes = state["cubes"] + torch.outer(traces + n * lengths, shift) + lines
    mixed = 2 * state["cubes"] @ halves.T  # sums of |x|^2 2 (s.y)
    squares = (
        state["squares"]
        + mixed
        + mixed.T
        + 2 * lines @ halves.T
        + torch.outer(traces, lengths)
        + torch.outer(lengths, traces)
        + n * torch.outer(lengths, lengths)
    )
    return cubes, squares


class _PairedSample(ReservoirMetric):
    """A uniform sample of pairs of rows."""

    width: Tensor

    def __init__(
        self,
        k: int = 10,
        size: int = 5000,
        seed: int = 0,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        super().__init__(size, seed, nan_strategy, **kwargs)
        self.k = k
        self._add("width", torch.tensor(0))

    @override
    def update(  # type: ignore[override]
        self, x: Tensor, y: Tensor, numbers: Tensor | None = None
    ) -> None:
        """Take in a batch.

        Args:
            x: (n, d) rows.
            y: (n, e) rows of the same samples.
            numbers: (n,) int64 numbers of the rows, each used once in the stream. Give them for
                all batches or for none.

        Raises:
            ValueError: if they are not 2-D, are empty, differ in rows, are not as wide as before,
                or hold NaN or inf and `nan_strategy` is `error`.
        """
        z = _joined(x, y)
        if self.rows and int(self.width) != x.shape[1]:
            raise ValueError(f"x must have {int(self.width)} columns, got {x.shape[1]}")
        super().update(z, numbers)
        self.width = torch.tensor(x.shape[1], device=self.device)

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        widths = sorted({int(s["width"]) for s in states} - {0})
        if len(widths) > 1:
            raise ValueError(f"x must have one width in all that is merged, got {widths}")
        width = torch.tensor(widths[0] if widths else 0, device=self.device)
        return super()._merge(states) | {"width": width}

    def _pairs(self) -> tuple[Tensor, Tensor]:
        rows = self._rows()
        return rows[:, : int(self.width)], rows[:, int(self.width) :]


class NeighborOverlap(_PairedSample):
    """Shared nearest neighbours of a sample of pairs: see `functional.neighbor_overlap`.

    Args:
        k: number of neighbours.
        size: number of pairs sampled at most; neighbours are sought among them.
        seed: of the sample.
        nan_strategy: `error`, or `drop` pairs that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> x = torch.arange(6.0)[:, None].square()
        >>> NeighborOverlap(k=2)(x, 2 * x)
        tensor(1.)
    """

    higher_is_better = True

    @override
    def compute(self) -> Tensor:
        """The overlap in the sample."""
        return self._output(functional.neighbor_overlap(*self._pairs(), k=self.k))


class InformationImbalance(_PairedSample):
    """Both information imbalances of a sample of pairs: see `functional.information_imbalance`.

    Args:
        k: number of neighbours.
        size: number of pairs sampled at most; ranks are taken among them.
        seed: of the sample.
        nan_strategy: `error`, or `drop` pairs that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> x = torch.arange(5.0)[:, None].square()
        >>> InformationImbalance()(x, x)
        tensor([0.4000, 0.4000])
    """

    higher_is_better = False

    def __init__(
        self,
        k: int = 1,
        size: int = 5000,
        seed: int = 0,
        nan_strategy: NanStrategy = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(k, size, seed, nan_strategy, **kwargs)

    @override
    def compute(self) -> Tensor:
        """(2,) Delta(x -> y) and Delta(y -> x) in the sample."""
        return self._output(functional.information_imbalance(*self._pairs(), k=self.k))


class ModalityGap(MergeableMetric):
    """Distance of the centres of two representations on the sphere: see `functional.modality_gap`.

    Args:
        nan_strategy: `error`, or `drop` pairs that hold NaN or inf and count them in `dropped`.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> ModalityGap()(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
        tensor(2.)
    """

    higher_is_better = False

    total: Tensor

    def __init__(self, nan_strategy: NanStrategy = "error", **kwargs: Any) -> None:
        super().__init__(nan_strategy, **kwargs)
        self._add("total", torch.zeros(0, dtype=torch.float64))

    @override
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch.

        Args:
            x: (n, D) rows of one representation.
            y: (n, D) rows of the other.

        Raises:
            ValueError: if they are not 2-D, are empty, differ in shape, hold a zero row, or hold
                NaN or inf and `nan_strategy` is `error`.
        """
        if x.shape != y.shape:
            raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
        width = self.total.numel()
        if width not in (0, x.shape[-1]):
            raise ValueError(f"x must have {width} columns as the batches before, got {x.shape[1]}")
        pairs = self._finite_rows(_joined(x, y), "x and y")
        if not pairs.shape[0]:
            return
        with exact_arithmetic(pairs.device):
            one, other = pairs.double().chunk(2, dim=1)
            difference = (on_sphere(one, "x") - on_sphere(other, "y")).sum(dim=0)
            self.total = self.total + difference if width else difference
            self.rows = self.rows + pairs.shape[0]

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        totals = [s["total"] for s in states if s["total"].numel()]
        widths = sorted({t.numel() for t in totals})
        if len(widths) > 1:
            raise ValueError(f"x must have one width in all that is merged, got {widths}")
        total = torch.stack(totals).sum(dim=0) if totals else self.total
        return super()._merge(states) | {"total": total}

    @override
    def compute(self) -> Tensor:
        """The gap of all rows."""
        self._check_updated()
        return self._output((self.total / self.rows).norm())


def _joined(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ValueError(
            "x and y must be 2-D with one row a sample each and not empty, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.cat([x.to(dtype), y.to(dtype)], dim=1)
