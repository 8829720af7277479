"""Dense measures of a stream of images: means of `lightly_collapse.functional.tokens`."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightly_collapse.functional import tokens as functional


class _MeanOverImages(Metric):
    """A weighted sum and the sum of the weights, added up among processes."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, weights: Tensor | None) -> None:
        w = torch.ones_like(values) if weights is None else weights.to(values)
        self.total = self.total + (values.double() * w).sum()
        self.weight = self.weight + w.double().sum()

    @override
    def compute(self) -> Tensor:
        """The mean over all images so far, weighted if they were.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: if there was no image yet.
        """
        if not self.weight:
            raise ValueError("no image was measured: call update() first")
        return (self.total / self.weight).float()

    @override
    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or several, as `torchmetrics.Metric.plot`."""
        return self._plot(val, ax)


class PatchRank(_MeanOverImages):
    """Mean effective rank of the patch tokens of an image: see `functional.tokens.patch_rank`.

    Args:
        center: subtract the mean token of each image first.
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = PatchRank(center=False)
        >>> metric.update(torch.eye(4)[None])
        >>> metric.compute()
        tensor(4.)
    """

    higher_is_better = True

    def __init__(self, center: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = center

    @override
    def update(self, tokens: Tensor, weights: Tensor | None = None) -> None:
        """Take in (n, p, d) patch tokens, and (n,) weights of the images; all 1 by default."""
        self._add(functional.patch_rank(tokens.detach(), self.center), weights)


class MeanTokenCosine(_MeanOverImages):
    """Mean cosine of patch tokens of one image: see `functional.tokens.mean_token_cosine`.

    Args:
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = MeanTokenCosine()
        >>> metric.update(torch.ones(2, 5, 3))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = False

    @override
    def update(self, tokens: Tensor, weights: Tensor | None = None) -> None:
        """Take in (n, p, d) patch tokens, and (n,) weights of the images; all 1 by default."""
        self._add(functional.mean_token_cosine(tokens.detach()), weights)


class GramDrift(_MeanOverImages):
    """Drift of patch similarities from a reference model: see `functional.tokens.gram_drift`.

    Args:
        **kwargs: as `torchmetrics.Metric`.

    Examples:
        >>> metric = GramDrift()
        >>> x = torch.randn(2, 9, 4)
        >>> metric.update(x, 2 * x)
        >>> f"{metric.compute():.3f}"
        '0.000'
    """

    higher_is_better = False

    @override
    def update(self, tokens: Tensor, reference: Tensor, weights: Tensor | None = None) -> None:
        """Take in (n, p, d) patch tokens, those of the reference, (n, p, e), and (n,) weights."""
        self._add(functional.gram_drift(tokens.detach(), reference.detach()), weights)


class NormOutliers(_MeanOverImages):
    """Mean share of patch tokens of high norm: see `functional.tokens.norm_outliers`.

    Args:
        factor: of the median norm of an image's tokens.
        **kwargs: as `torchmetrics.Metric`.

    Raises:
        ValueError: if `factor` is not above 1.

    Examples:
        >>> metric = NormOutliers()
        >>> metric.update(torch.ones(2, 5, 3))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False

    def __init__(self, factor: float = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not factor > 1:
            raise ValueError(f"factor must be above 1, got {factor}")
        self.factor = factor

    @override
    def update(self, tokens: Tensor, weights: Tensor | None = None) -> None:
        """Take in (n, p, d) patch tokens, and (n,) weights of the images; all 1 by default."""
        self._add(functional.norm_outliers(tokens.detach(), self.factor), weights)
