"""A uniform sample of bounded size from a stream of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from lightly_collapse.metrics._mergeable import MergeableMetric, check_width, exact_arithmetic


class ReservoirMetric(MergeableMetric):
    """A metric of pairs of rows: keeps a uniform sample of at most `size` of them.

    Every row draws a number in [0, 1); the `size` rows with the smallest numbers are the sample.
    So samples merge by the same rule, and every subset of that size is equally likely. The numbers
    depend on `seed`, the process's rank and the position of the row alone: the same stream gives
    the same sample.

    Attributes:
        sample: (at most size, D) rows of the sample, at least float32.
        draws: the number each of them drew.
    """

    # The second update of `forward` must not start the sequence of numbers anew for the total.
    full_state_update = True

    sample: Tensor
    draws: Tensor

    def __init__(self, size: int, seed: int, nan_strategy: str, **kwargs: Any) -> None:
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        super().__init__(nan_strategy, (size, seed), **kwargs)
        self.size = size
        self.seed = seed
        self._add("sample", torch.zeros(0, 0))
        self._add("draws", torch.zeros(0, dtype=torch.float64))

    @property
    def rows_used(self) -> int:
        """Rows of the sample: what `compute` looks at, of the `rows` this process has seen."""
        return self.sample.shape[0]

    def update(self, z: Tensor) -> None:
        """Take in a batch.

        Args:
            z: (n, D) rows in any floating dtype.

        Raises:
            ValueError: if `z` is not 2-D, is empty, is not as wide as the batches before, or holds
                NaN or inf and `nan_strategy` is `error`.
        """
        check_width(z, self.sample.shape[1] if self.sample.shape[0] else 0)
        z = self._finite_rows(z)
        with exact_arithmetic(z.device):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            numbers = np.random.default_rng((self.seed, rank, int(self.rows))).random(z.shape[0])
            draws = torch.from_numpy(numbers).to(z.device)
            self.rows = self.rows + z.shape[0]
            # Most rows of a long stream lose at once: leave the sample alone where all of them do.
            if self.rows_used == self.size:
                wins = draws < self.draws.max()
                z, draws = z[wins], draws[wins]
            if z.shape[0]:
                self.sample, self.draws = _smallest(
                    [self.sample, z], [self.draws, draws], self.size
                )

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in the rows of another metric.

        Give the two different seeds: with one seed, rows at the same position draw the same number.

        Args:
            incoming_state: the other metric, or its states.
        """
        if isinstance(incoming_state, Metric):
            incoming_state = incoming_state.metric_state
        self._reduce_states(incoming_state)

    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        merged = super()._merge(states)
        filled = [s for s in states if s["sample"].shape[0]]
        widths = sorted({s["sample"].shape[1] for s in filled})
        if len(widths) > 1:
            raise ValueError(f"z must have one width in all that is merged, got {widths}")
        if not filled:
            return merged | {"sample": self.sample, "draws": self.draws}
        sample, draws = _smallest(
            [s["sample"] for s in filled], [s["draws"] for s in filled], self.size
        )
        return merged | {"sample": sample, "draws": draws}

    def _rows(self) -> Tensor:
        self._check_updated()
        return self.sample


def _smallest(
    samples: Sequence[Tensor], draws: Sequence[Tensor], size: int
) -> tuple[Tensor, Tensor]:
    numbers = torch.cat(tuple(draws))
    dtype = samples[-1].dtype
    for s in samples:
        dtype = torch.promote_types(dtype, s.dtype)
    rows = torch.cat([s.to(dtype) for s in samples if s.numel()])
    if len(numbers) <= size:
        return rows, numbers
    kept = numbers.topk(size, largest=False, sorted=False).indices
    return rows[kept], numbers[kept]
