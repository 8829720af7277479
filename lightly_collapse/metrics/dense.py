"""The dense measures of a layer's patch tokens, of a sample of the images of a stream."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lightly_collapse.metrics.tokens import (
    GramDrift,
    MeanTokenCosine,
    NormOutliers,
    PatchRank,
)


class TokenMetrics:
    """Patch rank, mean token cosine, norm outliers and Gram drift of a bounded number of images.

    The first `size` images are measured; of the next `size` every second, of the 2 `size` after
    them every fourth, and so on, each with the weight of those that it stands for. So the means are
    of the whole stream, in whatever order it comes, and their cost grows with its logarithm.

    Args:
        size: number of images that are all measured.
        seen: number of images of the stream that others have seen.

    Attributes:
        seen: number of the next image in the stream.

    Raises:
        ValueError: if `size` is not positive.

    Examples:
        >>> metrics = TokenMetrics(size=8)
        >>> index, weights = metrics.choose(12)
        >>> index.tolist(), weights.tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 10], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
        >>> metrics.update(torch.ones(12, 9, 4)[index], weights)
        >>> metrics.compute()["mean_token_cosine"]
        1.0
    """

    def __init__(self, size: int = 64, seen: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._size = size
        self.seen = seen
        self._metrics: dict[str, PatchRank | MeanTokenCosine | NormOutliers | GramDrift] = {
            "patch_rank": PatchRank(),
            "mean_token_cosine": MeanTokenCosine(),
            "norm_outliers": NormOutliers(),
            "gram_drift": GramDrift(),
        }

    def choose(self, images: int) -> tuple[Tensor, Tensor]:
        """Which of the next images of the stream are measured.

        Args:
            images: number of images in the batch.

        Returns:
            Their indices in the batch, int64, and weights, float32.
        """
        chosen, weights = [], []
        for i in range(images):
            step = 1 << (self.seen // self._size).bit_length()
            if self.seen % step == 0:
                chosen.append(i)
                weights.append(float(step))
            self.seen += 1
        return torch.tensor(chosen, dtype=torch.int64), torch.tensor(weights)

    def update(self, tokens: Tensor, weights: Tensor, reference: Tensor | None = None) -> None:
        """Take in chosen images; those that hold NaN or inf are left out.

        Args:
            tokens: (n, p, d) patch tokens. Fewer than two patches have no dense measures.
            weights: (n,), as `choose` gave them.
            reference: (n, p, e) patch tokens of a reference model.
        """
        if tokens.ndim != 3 or tokens.shape[1] < 2:
            return
        finite = tokens.isfinite().flatten(1).all(dim=1)
        if reference is not None:
            finite &= reference.to(tokens.device).isfinite().flatten(1).all(dim=1)
        if not finite.any():
            return
        weights, tokens = weights.to(tokens.device)[finite], tokens[finite]
        for metric in self._metrics.values():
            metric.to(tokens.device)
            if not isinstance(metric, GramDrift):
                metric.update(tokens, weights)
            elif reference is not None:
                metric.update(tokens, reference.to(tokens.device)[finite], weights)

    def reset(self) -> None:
        """Forget all images."""
        self.seen = 0
        for metric in self._metrics.values():
            metric.reset()

    def totals(self) -> dict[str, tuple[float, float]]:
        """Of this process, by name: the weighted sum over the images, and the sum of weights."""
        return {name: (float(m.total), float(m.weight)) for name, m in self._metrics.items()}

    def compute(self) -> dict[str, float]:
        """The means of this process by name; see `means`."""
        return means([self.totals()])


def means(totals: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """The means over the images of several processes.

    Args:
        totals: what `TokenMetrics.totals` gave on each.

    Returns:
        Values of `patch_rank`, `mean_token_cosine`, `norm_outliers` and `gram_drift`; those that no
        image was given for are left out.

    Examples:
        >>> means([{"patch_rank": (6.0, 2.0)}, {"patch_rank": (10.0, 2.0)}])
        {'patch_rank': 4.0}
    """
    sums: dict[str, tuple[float, float]] = {}
    for part in totals:
        for name, (total, weight) in part.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + total, old[1] + weight)
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
