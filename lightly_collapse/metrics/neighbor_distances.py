"""Exact neighbour distances of fixed queries to all rows of a stream."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightly_collapse import functional
from lightly_collapse.functional.intrinsic_dimension import lid_mom_from_distances
from lightly_collapse.functional.neighbors import nearest_neighbors


class NeighborDistances:
    """The k smallest distances of fixed queries to all rows of a stream, exact; they merge.

    The queries are rows of the stream themselves. Each finds itself once, at distance zero, and
    that one is left out.

    Args:
        queries: (q, D) rows of the stream.
        k: number of neighbours.

    Examples:
        >>> line = torch.arange(6.0)[:, None]
        >>> near = NeighborDistances(line[:2], k=2)
        >>> near.update(line[:3])
        >>> near.update(line[3:])
        >>> near.distances()
        tensor([[1., 2.],
                [1., 1.]], dtype=torch.float64)
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        # float64: a distance is then the same, to 1e-9, in whatever batch its row comes.
        self.queries = queries.double()
        self.k = k
        self._nearest = self.queries.new_zeros(len(queries), 0)

    def update(self, rows: Tensor) -> None:
        """Take in (n, D) rows; those that hold NaN or inf are left out.

        Raises:
            ValueError: if the width is not that of the queries.
        """
        rows = rows[rows.isfinite().all(dim=1)]
        if len(rows):
            near, _ = nearest_neighbors(self.queries, rows.double(), min(self.k + 1, len(rows)))
            self._merge_distances([near])

    def merge(self, other: "NeighborDistances") -> None:
        """Take in the rows that another one saw, of the same queries."""
        self._merge_distances([other._nearest])

    def distances(self) -> Tensor:
        """(q, k) distances in ascending order, oneself left out.

        Raises:
            ValueError: if there were no more than `k` rows.
        """
        if self._nearest.shape[1] <= self.k:
            raise ValueError(
                f"k must be below the number of rows seen, {self._nearest.shape[1]}, got {self.k}"
            )
        return self._nearest[:, 1:]

    def lid(self) -> Tensor:
        """(q,) local intrinsic dimensionality by the method of moments, neighbours in all rows.

        Raises:
            ValueError: as `distances`.
        """
        return lid_mom_from_distances(self.distances())

    def mlid(self) -> float:
        """Their geometric mean.

        Raises:
            ValueError: as `distances`.
        """
        return float(functional.geometric_mean(self.lid()))

    def _merge_distances(self, more: Sequence[Tensor]) -> None:
        every = torch.cat([self._nearest, *more], dim=1)
        self._nearest = every.sort(dim=1).values[:, : self.k + 1].clone()
