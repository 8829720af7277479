"""The mergeable sketch of a table of embeddings."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightly_collapse.functional.intrinsic_dimension import (
    DEFAULT_LID_K,
)
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics._mergeable import check_width, finite_rows
from lightly_collapse.metrics._parts import ratio_of_parts, ratios_of_parts
from lightly_collapse.metrics._reservoir import ReservoirMetric, check_numbers, row_draws
from lightly_collapse.metrics.collection import CollapseMetrics, collapse_metrics
from lightly_collapse.metrics.layer import LayerMetrics, Reading
from lightly_collapse.metrics.spectrum import Spectrum

_BLOCK_BYTES = 2**29
_ROWS_OF_A_BLOCK = 64  # added at a time: a product of few rows costs as much as one of these
_WAITING_BYTES = 2**24  # more rows at a time where they are narrow


class EmbeddingSketch:
    """All that a report says about rows, in a state that merges; the same for any sharding.

    The rows are assigned to blocks by the hash of their number, or of their entries, and each block
    keeps count, mean and scatter matrix: the whole is their merger, and leaving out one after the
    other gives the jackknife's intervals. With one block there are none.

    Args:
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality.
        lid_size: number of rows sampled at most for neighbours and pairs.
        seed: of sample and blocks.
        blocks: number of blocks. Rows too wide for so many scatter matrices in `block_bytes` get
            fewer, and one where not even ten fit.
        block_bytes: memory for the blocks, 512 MiB by default.

    Examples:
        >>> z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> one, other = EmbeddingSketch(), EmbeddingSketch()
        >>> kept = one.update(z[:100])
        >>> kept = other.update(z[100:])
        >>> one.merge(other)
        >>> reading = one.compute()
        >>> int(reading.scalars["rows"]), f"{reading.scalars['effective_rank']:.1f}"
        (500, '8.0')
    """

    def __init__(
        self,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 5000,
        seed: int = 0,
        blocks: int = 1,
        block_bytes: int | None = None,
    ) -> None:
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        self.rtol = rtol
        self.lid_k = lid_k
        self.lid_size = lid_size
        self.seed = seed
        self._wanted = blocks
        self._block_bytes = _BLOCK_BYTES if block_bytes is None else block_bytes
        self._sketches = [Spectrum(center=True, nan_strategy="drop")]
        self._waiting: list[tuple[Tensor, Tensor]] = []  # rows and their blocks
        self._sample = RowSample(lid_size, seed)
        self._width = 0
        self._device = torch.device("cpu")
        _check_settings(rtol, lid_k, lid_size, seed)

    @property
    def dimensions(self) -> int:
        """Width of the rows; 0 before the first finite one."""
        return max(block.mean.numel() for block in self._blocks)

    @property
    def rows(self) -> int:
        """Number of rows measured."""
        return sum(int(block.rows) for block in self._blocks)

    @property
    def dropped(self) -> int:
        """Number of rows left out for holding NaN or inf."""
        return sum(int(block.dropped) for block in self._blocks)

    @property
    def draws_of_sample(self) -> Tensor:
        """(at most lid_size,) the draws of the sampled rows: which rows they are."""
        return self._sample.draws

    @property
    def sample(self) -> Tensor:
        """The sampled rows, (at most lid_size, D)."""
        return self._sample.sample

    def neighbors(self, k: int) -> tuple[Tensor, Tensor]:
        """Distances and rows of the nearest others of the sampled rows, ascending.

        Returns:
            Two (at most lid_size, k or more), see `RowSample.neighbors`.

        Raises:
            ValueError: if the sample has no more than `k` rows.
        """
        return self._sample.neighbors(k)

    def to(self, device: torch.device) -> "EmbeddingSketch":
        """Move the state to a device; returns itself."""
        for block in self._blocks:
            block.to(device)
        self._sample.to(device)
        self._device = device
        return self

    def update(
        self, rows: Tensor, numbers: Tensor | None = None, clusters: Tensor | None = None
    ) -> Tensor:
        """Take in (n, D) rows.

        Args:
            rows: in any floating dtype; those that hold NaN or inf are left out and counted.
            numbers: (n,) int64 numbers of the rows, each used once; their entries without.
            clusters: (n,) int64 numbers of what rows belong to, such as the image of a patch: rows
                of one cluster are not independent and stay in one block. By default every row is
                one.

        Returns:
            (n,) which rows were not left out.

        Raises:
            ValueError: if the rows are not 2-D, empty or not as wide as those before.
        """
        check_width(rows, self._width)
        if numbers is not None:
            check_numbers(numbers, len(rows))
        self._make_blocks(rows.shape[1])
        if rows.device != self._device:
            self.to(rows.device)
        rows = rows.detach().to(self._sample.device)
        finite = finite_rows(rows)
        if not finite.all():
            rows = rows[finite]
            numbers = None if numbers is None else numbers[finite]
            clusters = None if clusters is None else clusters[finite]
            for state in (self._sketches[0], self._sample):
                state.dropped = state.dropped + (len(finite) - len(rows))
        draws = row_draws(rows, numbers, self.seed)
        self._sample.take_in_finite(rows, draws)
        if len(self._sketches) == 1:
            self._sketches[0].take_in_finite(rows)
            return finite
        members = draws if clusters is None else row_draws(rows, clusters, self.seed)
        self._waiting.append((rows.clone(), members.remainder(len(self._sketches))))
        waiting = sum(len(part) for part, _ in self._waiting)
        size = waiting * rows.shape[1] * rows.element_size()
        enough = _ROWS_OF_A_BLOCK * len(self._sketches)
        if waiting >= 8 * enough or (waiting >= enough and size >= _WAITING_BYTES):
            self._take_in_waiting()
        return finite

    @property
    def _blocks(self) -> list[Spectrum]:
        self._take_in_waiting()
        return self._sketches

    def _take_in_waiting(self) -> None:
        if not self._waiting:
            return
        dtypes = {part.dtype for part, _ in self._waiting}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
        rows = torch.cat([part.to(dtype) for part, _ in self._waiting])
        members = torch.cat([block for _, block in self._waiting])
        self._waiting = []
        order = members.argsort(stable=True)
        counts = torch.bincount(members, minlength=len(self._sketches)).tolist()
        for sketch, part in zip(self._sketches, torch.split(rows[order], counts), strict=True):
            if len(part):
                sketch.take_in_finite(part)

    @override
    def __getstate__(self) -> dict[str, Any]:
        self._take_in_waiting()
        return self.__dict__

    def draws(self, rows: Tensor, numbers: Tensor | None = None) -> Tensor:
        """(n,) the hash by which each row is sampled: the smallest are in the sample."""
        return row_draws(rows, numbers, self.seed)

    def merge(self, other: "EmbeddingSketch") -> None:
        """Take in the rows of another sketch of the same settings.

        Raises:
            ValueError: if the settings or the widths differ.
        """
        mine, theirs = self._settings(), other._settings()
        if mine != theirs:
            raise ValueError(f"sketches to be merged must have one setting, got {mine}, {theirs}")
        if not other._width:
            return
        if self._width not in (0, other._width):
            raise ValueError(
                "rows must have one width in all that is merged, got "
                f"{self._width} and {other._width}"
            )
        self._make_blocks(other._width)
        for block, incoming in zip(self._blocks, other._blocks, strict=True):
            block.merge_states([incoming.tensor_states()])
        self._sample.merge_states([other._sample.tensor_states()])

    def compute(self, danco: bool = False) -> Reading:
        """The reading of all rows, in float64.

        Args:
            danco: compute the DANCo intrinsic dimension too, see `LayerMetrics`.
        """
        layer = LayerMetrics(self.rtol, self.lid_k, self.lid_size, self.seed, danco)
        layer.to(self._sample.device).double()
        layer.merge_states(
            [b.tensor_states() for b in self._blocks], [self._sample.tensor_states()]
        )
        return layer.compute()

    def spectrum(self) -> Tensor:
        """Singular values of the centred rows, in descending order, float64."""
        whole = Spectrum(center=True, nan_strategy="drop")
        whole.to(self._sample.device).set_dtype(torch.float64)  # `to` alone would set float32
        whole.merge_states([b.tensor_states() for b in self._blocks])
        return whole.compute()

    def leave_one_out(self) -> list[dict[str, float]]:
        """The spectrum measures of all rows but one block's, for each block that has rows.

        Returns:
            By block, value by name, nan where it cannot be computed, the participation ratio as
            that of `corrected_participation_ratio`; empty with one block.
        """
        blocks = [b for b in self._blocks if b.rows]
        if len(blocks) < 2:
            return []
        ratios = ratios_of_parts([b.scatter for b in blocks])
        found, metrics = [], self._collapse_metrics()
        for others, ratio in zip(_without_each(blocks), ratios, strict=True):
            metrics.reset()
            metrics.merge_states([others.tensor_states()])
            values, _ = metrics.compute_or_nan()
            found.append({name: float(v) for name, v in values.items() if v.numel() == 1})
            found[-1]["participation_ratio"] = ratio
        return found

    def corrected_participation_ratio(self) -> float:
        """The participation ratio without the bias of few rows; nan with fewer than two blocks.

        (tr S)^2 / tr S^2 of the covariance S: every product of two different blocks' scatter
        matrices is free of bias, whatever the distribution, so numerator and denominator are summed
        over those alone.
        """
        scatters = [b.scatter for b in self._blocks if b.rows]
        return ratio_of_parts(scatters) if len(scatters) > 1 else float("nan")

    def _make_blocks(self, width: int) -> None:
        if self._width:
            return
        self._width = width
        wanted = min(self._wanted, self._block_bytes // (8 * width * width))
        wanted = wanted if wanted >= min(self._wanted, 10) else 1
        self._sketches = [Spectrum(center=True, nan_strategy="drop") for _ in range(wanted)]

    def _settings(self) -> tuple[float, ...]:
        return (self.rtol, self.lid_k, self.lid_size, self.seed, self._wanted, self._block_bytes)

    def _collapse_metrics(self) -> CollapseMetrics:
        metrics = collapse_metrics(rtol=self.rtol, nan_strategy="drop")
        metrics.to(self._sample.device).set_dtype(torch.float64)
        return metrics


@lru_cache
def _check_settings(rtol: float, lid_k: int, lid_size: int, seed: int) -> None:
    """Raise a ValueError where one is out of range; once, since it takes milliseconds."""
    LayerMetrics(rtol, lid_k, lid_size, seed)


def _without_each(blocks: Sequence[Spectrum], others: Spectrum | None = None) -> Iterator[Spectrum]:
    """All blocks but one and `others`, merged, for each block in turn.

    By halves: n log2 n merges of matrices instead of n^2, and log2 n of them in memory.
    """
    if len(blocks) == 1 and others is not None:
        yield others
        return
    half = len(blocks) // 2
    parts = (blocks[:half], blocks[half:])
    for kept, left in (parts, parts[::-1]):
        whole = Spectrum(center=True, nan_strategy="drop")
        states = [b.tensor_states() for b in (*left, *([] if others is None else [others]))]
        whole.to(kept[0].device).merge_states(states)
        yield from _without_each(kept, whole)


class RowSample(ReservoirMetric):
    """A uniform sample of at most `size` rows, without those that hold NaN or inf.

    Args:
        size: number of rows at most.
        seed: of the sample.

    Examples:
        >>> sample = RowSample(size=3)
        >>> sample.update(torch.arange(10.0)[:, None])
        >>> sample.compute().shape
        torch.Size([3, 1])
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__(size, seed, nan_strategy="drop")

    @override
    def compute(self) -> Tensor:
        """The rows, by ascending draw."""
        return self._rows()
