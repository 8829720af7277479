"""A uniform sample of bounded size from a stream of rows, the same for any order and sharding."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torchmetrics import Metric
from typing_extensions import override

from lightly_collapse.functional.neighbors import nearest_neighbors
from lightly_collapse.metrics._mergeable import (
    MergeableMetric,
    NanStrategy,
    check_width,
    exact_arithmetic,
)

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 64-bit constants of SplitMix64, as signed numbers
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_ROWS_AT_ONCE = 1024

# Metrics of one compute group hold the same sample: its neighbours are sought once.
_NEIGHBORS: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakTensorKeyDictionary()


class ReservoirMetric(MergeableMetric):
    """A metric of pairs of rows: keeps a uniform sample of at most `size` of them.

    Every row draws a 64-bit number; the `size` rows with the smallest numbers are the sample. So
    samples merge by the same rule, and every subset of that size is equally likely. The number is
    a hash of `seed` and of the row's number where one is given, else of the row's entries: it
    depends on no process, batch or order, and any sharding of the rows gives the same sample. Equal
    rows without row numbers draw the same number, so that all of them or none are in the sample:
    give row numbers where many rows are equal.

    Attributes:
        sample: (at most size, D) rows of the sample, at least float32, by ascending draw.
        draws: (at most size,) the number each of them drew, int64.
    """

    sample: Tensor
    draws: Tensor

    def __init__(self, size: int, seed: int, nan_strategy: NanStrategy, **kwargs: Any) -> None:
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        super().__init__(nan_strategy, (size, seed), **kwargs)
        self.size = size
        self.seed = seed
        self._add("sample", torch.zeros(0, 0))
        self._add("draws", torch.zeros(0, dtype=torch.int64))

    @property
    def rows_used(self) -> int:
        """Rows of the sample: what `compute` looks at, of the `rows` this process has seen."""
        return self.sample.shape[0]

    @override
    def update(self, z: Tensor, numbers: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            z: (n, D) rows in any floating dtype.
            numbers: (n,) int64 numbers of the rows, each used once in the stream. Give them for
                all batches or for none.

        Raises:
            ValueError: if `z` is not 2-D, is empty, is not as wide as the batches before, or holds
                NaN or inf and `nan_strategy` is `error`, or `numbers` has another length.
        """
        check_width(z, self.sample.shape[1] if self.sample.shape[0] else 0)
        if numbers is not None:
            check_numbers(numbers, z.shape[0])
            numbers = numbers.to(self.device)
            if self.nan_strategy == "drop":
                numbers = numbers[z.detach().to(self.device).isfinite().all(dim=1)]
        z = self._finite_rows(z)
        self.take_in_finite(z, row_draws(z, numbers, self.seed))

    def take_in_finite(self, z: Tensor, draws: Tensor) -> None:
        """`update` for rows that are known to be finite, on this metric's device.

        Args:
            z: (n, D) rows.
            draws: (n,) what `row_draws` gave for them.
        """
        with exact_arithmetic(z.device):
            self.rows = self.rows + z.shape[0]
            # Most rows of a long stream lose at once: leave the sample alone where all of them do.
            if self.rows_used == self.size:
                wins = draws < self.draws[-1]
                z, draws = z[wins], draws[wins]
            if z.shape[0]:
                z = z.to(torch.promote_types(z.dtype, torch.float32))
                self.sample, self.draws = _smallest(
                    [self.sample, z], [self.draws, draws], self.size
                )
        self.mark_updated()

    @override
    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in the rows of another metric, of the same seed.

        Args:
            incoming_state: the other metric, or its states.
        """
        if isinstance(incoming_state, Metric):
            incoming_state = incoming_state.metric_state
        self._reduce_states(incoming_state)

    @override
    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        merged = super()._merge(states)
        filled = [s for s in states if s["sample"].shape[0]]
        widths = sorted({s["sample"].shape[1] for s in filled})
        if len(widths) > 1:
            raise ValueError(f"z must have one width in all that is merged, got {widths}")
        if not filled:
            return merged | {"sample": self.sample, "draws": self.draws}
        if len(filled) == 1 and filled[0]["sample"].shape[0] <= self.size:
            return merged | {name: filled[0][name] for name in ("sample", "draws")}
        sample, draws = _smallest(
            [s["sample"] for s in filled], [s["draws"] for s in filled], self.size
        )
        return merged | {"sample": sample, "draws": draws}

    def _rows(self) -> Tensor:
        self._check_updated()
        return self.sample

    def neighbor_distances(self, k: int) -> Tensor:
        """(rows_used, k) distances of the sampled rows to their nearest others, ascending.

        Raises:
            ValueError: if the sample has no more than `k` rows.
        """
        return self.neighbors(k)[0][:, :k]

    def neighbors(self, k: int) -> tuple[Tensor, Tensor]:
        """Distances and rows of the nearest others of the sampled rows: `k` and many spare ones.

        So many that of almost every row `k` are in any half of the rows.

        Raises:
            ValueError: if the sample has no more than `k` rows.
        """
        x = self._rows()
        if k >= x.shape[0]:
            raise ValueError(f"k must be below the number of rows seen, {x.shape[0]}, got {k}")
        found = _NEIGHBORS.get(x)
        if found is None or found[0].shape[1] < k:
            own = torch.arange(x.shape[0], device=x.device)
            found = nearest_neighbors(x, x, min(3 * k + 4, x.shape[0] - 1), exclude=own)
            _NEIGHBORS[x] = found
        return found


def _smallest(
    samples: Sequence[Tensor], draws: Sequence[Tensor], size: int
) -> tuple[Tensor, Tensor]:
    """The rows of the smallest draws, in ascending order: equal draws have equal rows."""
    numbers = torch.cat(tuple(draws))
    dtype = samples[-1].dtype
    for s in samples:
        dtype = torch.promote_types(dtype, s.dtype)
    rows = torch.cat([s.to(dtype) for s in samples if s.numel()])
    ascending, order = numbers.sort(stable=True)
    return rows[order[:size]], ascending[:size].clone()


def check_numbers(numbers: Tensor, rows: int) -> None:
    """Raise a ValueError unless `numbers` are int64, one a row."""
    if numbers.dtype != torch.int64 or numbers.shape != (rows,):
        raise ValueError(
            f"numbers must be ({rows},) int64, one a row, got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)}"
        )


def row_draws(z: Tensor, numbers: Tensor | None = None, seed: int = 0) -> Tensor:
    """A pseudo-random 64-bit number for each row, from its number or else from its entries.

    Integer arithmetic alone, modulo 2^64: the same on every device and for every batching. Half
    types are hashed as float32, so a float16 row and its float32 copy draw the same number.

    Args:
        z: (n, D) rows in any floating dtype.
        numbers: (n,) int64 numbers of the rows; by default the entries are hashed.
        seed: other seeds give other, unrelated numbers.

    Returns:
        (n,) int64.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014
    (the mixing function of SplitMix64).

    Examples:
        >>> z = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
        >>> bool((row_draws(z) == row_draws(z.half())).all())
        True
    """
    with exact_arithmetic(z.device):
        if numbers is None:
            x = z if z.dtype == torch.float64 else z.float()
            if x.dtype == torch.float32 and x.shape[1] % 2:
                x = torch.nn.functional.pad(x, (0, 1))
            words_per_row = x.shape[1] * x.element_size() // 8
            words = torch.arange(1, words_per_row + 1, device=z.device)
            factors = _mixed(words * _GOLDEN) | 1
            hashes = []
            for part in torch.split(x, _ROWS_AT_ONCE):
                bits = (part + 0.0).view(torch.int64)  # zero has two signs and one meaning
                bits = (bits ^ (bits >> 29)).mul_(factors)
                bits ^= bits >> 32
                hashes.append(bits.sum(dim=1))
            numbers = torch.cat(hashes)
        salt = _mixed(torch.tensor((seed + 1) % 2**63, device=z.device) * _GOLDEN)
        return _mixed(_mixed(numbers * _GOLDEN + salt) ^ salt)


def _mixed(x: Tensor) -> Tensor:
    for shift, factor in _ROUNDS:
        # The shift of int64 copies the sign bit down: mask it off.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))
