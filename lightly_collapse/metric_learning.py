"""The regularizers as parts of pytorch-metric-learning losses.

Needs the extra `metric-learning`: pip install "lightly-collapse[metric-learning]".
"""

from typing import Any

import torch
from torch import Tensor

from lightly_collapse.functional.intrinsic_dimension import Estimator, lid_mle, lid_mom
from lightly_collapse.functional.orthogonality import PenaltyKind, check_kind, orthogonality_penalty

try:
    from pytorch_metric_learning.reducers import SumReducer
    from pytorch_metric_learning.regularizers import BaseRegularizer
except ImportError as error:
    raise ImportError(
        "lightly_collapse.metric_learning needs pytorch-metric-learning: "
        'pip install "lightly-collapse[metric-learning]"'
    ) from error

_ESTIMATORS = {"mom": lid_mom, "mle": lid_mle}


class OrthogonalityWeightRegularizer(BaseRegularizer):  # type: ignore[misc]
    """Distance of a loss's class vectors from orthonormal ones, as its `weight_regularizer`.

    `so` and `dso` hand the reducer one term a class, which sum to the penalty; `mc` and `srip` are
    one number, which any reducer leaves as it is.

    Args:
        kind: `so`, `dso`, `mc` or `srip`; see `lightly_collapse.functional.orthogonality_penalty`.
        kwargs: what every regularizer of pytorch-metric-learning takes; the reducer is its
            `SumReducer` by default, so that the penalty is that of `orthogonality_penalty`.

    Raises:
        ValueError: if `kind` is none of these: class vectors are no convolution.

    Examples:
        >>> from pytorch_metric_learning.losses import ArcFaceLoss
        >>> regularizer = OrthogonalityWeightRegularizer(kind="so")
        >>> loss_fn = ArcFaceLoss(10, 32, weight_regularizer=regularizer, weight_reg_weight=1e-4)
        >>> loss = loss_fn(torch.randn(8, 32), torch.randint(10, (8,)))
    """

    def __init__(self, kind: PenaltyKind = "so", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_kind(kind)
        if kind not in ("so", "dso", "mc", "srip"):
            raise ValueError(f"kind must be so, dso, mc or srip for class vectors, got {kind!r}")
        self.kind = kind

    def compute_loss(self, weights: Tensor) -> dict[str, dict[str, Any]]:
        """The penalty of (classes, dimensions) weights, by class where it is a sum over them."""
        if self.kind in ("mc", "srip"):
            penalty = orthogonality_penalty(weights, self.kind)
            return _loss(penalty, None, "already_reduced")
        with torch.autocast(weights.device.type, enabled=False):
            losses = _so_by_row(weights.float() if weights.dtype.itemsize < 4 else weights)
        if self.kind == "dso":
            losses = 2 * losses + abs(weights.shape[0] - weights.shape[1]) / weights.shape[0]
        return _loss(losses, torch.arange(len(losses), device=losses.device), "element")

    def get_default_reducer(self) -> SumReducer:
        """A sum, so that the penalty is that of `orthogonality_penalty`."""
        return SumReducer()


class LDRegEmbeddingRegularizer(BaseRegularizer):  # type: ignore[misc]
    """Minus the log local intrinsic dimensionality of embeddings, as an `embedding_regularizer`.

    Hands the reducer one term a sample; by the default, their mean, it is the l1 form of LDReg.

    Args:
        k: number of neighbours, at least 2 and below the number of embeddings in a batch.
        estimator: `mom`, the method of moments, or `mle`, maximum likelihood.
        kwargs: what every regularizer of pytorch-metric-learning takes.

    Raises:
        ValueError: if `k` is below 2 or `estimator` is unknown.

    Source: Huang et al., "LDReg", ICLR 2024, arXiv 2401.10474, equation 4.

    Examples:
        >>> from pytorch_metric_learning.losses import NTXentLoss
        >>> regularizer = LDRegEmbeddingRegularizer(k=16)
        >>> loss_fn = NTXentLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.01)
        >>> loss = loss_fn(torch.randn(32, 64), torch.arange(16).repeat(2))
    """

    def __init__(self, k: int = 64, estimator: Estimator = "mom", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 2:
            raise ValueError(f"k must be at least 2, got {k}: a LID compares two distances")
        if estimator not in _ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}"
            )
        self.k = k
        self.estimator = estimator

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """Minus the log LID of each of the (samples, dimensions) embeddings.

        Raises:
            ValueError: if there are no more than `k` embeddings, as in a last batch that is small.
        """
        if len(embeddings) <= self.k:
            raise ValueError(
                f"k must be below the number of embeddings in a batch, got k {self.k} and "
                f"{len(embeddings)} embeddings; a last batch that is smaller than the others is "
                "left out by DataLoader(drop_last=True)"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            losses = -_ESTIMATORS[self.estimator](embeddings, k=self.k).log()
        return _loss(losses, torch.arange(len(losses), device=losses.device), "element")


def _so_by_row(w: Tensor) -> Tensor:
    """Terms that sum to ||G - I||^2, G the Gram matrix of the smaller side, one a row of W."""
    rows, columns = w.shape
    if rows <= columns:
        eye = torch.eye(rows, dtype=w.dtype, device=w.device)
        return (w @ w.mT - eye).square().sum(dim=1)
    # ||W^T W - I||^2 = sum_i w_i^T (W^T W - 2 I) w_i + columns
    gram = w.mT @ w - 2 * torch.eye(columns, dtype=w.dtype, device=w.device)
    return ((w @ gram) * w).sum(dim=1) + columns / rows


def _loss(losses: Tensor, indices: Tensor | None, reduction: str) -> dict[str, dict[str, Any]]:
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": reduction}}
