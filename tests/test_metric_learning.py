"""As parts of pytorch-metric-learning losses, with its reducers."""

import pytest
import torch
from torch import Tensor

pml = pytest.importorskip("pytorch_metric_learning")

from pytorch_metric_learning import losses, reducers  # noqa: E402
from pytorch_metric_learning.regularizers import BaseRegularizer  # noqa: E402

from lightly_collapse.functional import lid_mle, lid_mom, orthogonality_penalty  # noqa: E402
from lightly_collapse.metric_learning import (  # noqa: E402
    LDRegEmbeddingRegularizer,
    OrthogonalityWeightRegularizer,
)

KINDS = ("so", "dso", "mc", "srip")
CLASSES, DIM, ROWS = 6, 16, 24
EMBEDDINGS = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(ROWS) % CLASSES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (5, 5)])
def test_value_and_gradient_of_class_vectors(shape: tuple[int, int], kind: str) -> None:
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = OrthogonalityWeightRegularizer(kind)(w), orthogonality_penalty(w, kind)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, w)[0], torch.autograd.grad(theirs, w)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_class", [losses.ArcFaceLoss, losses.NormalizedSoftmaxLoss])
def test_as_weight_regularizer(loss_class: type, kind: str) -> None:
    torch.manual_seed(0)
    regularizer = OrthogonalityWeightRegularizer(kind)
    assert isinstance(regularizer, BaseRegularizer)
    loss_fn = loss_class(CLASSES, DIM, weight_regularizer=regularizer, weight_reg_weight=0.5)
    with_penalty = loss_fn(EMBEDDINGS, LABELS)
    loss_fn.weight_regularizer = None
    penalty = orthogonality_penalty(loss_fn.W.t(), kind)
    torch.testing.assert_close(with_penalty, loss_fn(EMBEDDINGS, LABELS) + 0.5 * penalty)
    with_penalty.backward()
    assert loss_fn.W.grad.isfinite().all()


def ldreg(estimator: str) -> Tensor:
    return -(lid_mom if estimator == "mom" else lid_mle)(EMBEDDINGS, k=8).log()


@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_as_embedding_regularizer(estimator: str) -> None:
    regularizer = LDRegEmbeddingRegularizer(k=8, estimator=estimator)
    assert isinstance(regularizer, BaseRegularizer)
    x = EMBEDDINGS.clone().requires_grad_()
    loss_fn = losses.NTXentLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.1)
    expected = losses.NTXentLoss()(x, LABELS) + 0.1 * ldreg(estimator).mean()
    ours = loss_fn(x, LABELS)
    torch.testing.assert_close(ours, expected)
    ours.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_in_a_self_supervised_loss() -> None:
    regularizer = LDRegEmbeddingRegularizer(k=8)
    views = EMBEDDINGS.chunk(2)
    plain = losses.SelfSupervisedLoss(losses.NTXentLoss())(*views)
    loss_fn = losses.NTXentLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.1)
    ours = losses.SelfSupervisedLoss(loss_fn)(*views)
    torch.testing.assert_close(ours, plain + 0.1 * ldreg("mom").mean())


def test_reducers() -> None:
    terms = ldreg("mom")
    for reducer, expected in [
        (reducers.MeanReducer(), terms.mean()),
        (reducers.SumReducer(), terms.sum()),
        (reducers.ThresholdReducer(low=-2), terms[terms > -2].mean()),
    ]:
        torch.testing.assert_close(
            LDRegEmbeddingRegularizer(8, reducer=reducer)(EMBEDDINGS), expected
        )
    w = torch.randn(6, 16)
    by_class = (w @ w.T - torch.eye(6)).square().sum(dim=1)
    mean = OrthogonalityWeightRegularizer(reducer=reducers.MeanReducer())(w)
    torch.testing.assert_close(mean, by_class.mean())
    by_class = OrthogonalityWeightRegularizer(reducer=reducers.DoNothingReducer())(w)
    assert len(by_class["loss"]["losses"]) == 6


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"^kind must be one of .* got 'hard'"):
        OrthogonalityWeightRegularizer("hard")
    with pytest.raises(ValueError, match=r"^kind must be so, dso, mc or srip for class vectors"):
        OrthogonalityWeightRegularizer("conv")
    with pytest.raises(ValueError, match=r"^k must be at least 2, got 1"):
        LDRegEmbeddingRegularizer(k=1)
    with pytest.raises(ValueError, match=r"^estimator must be one of mom, mle, got 'median'"):
        LDRegEmbeddingRegularizer(estimator="median")
    with pytest.raises(ValueError, match=r"^k must be below .* got k 24 and 24 .*drop_last=True"):
        LDRegEmbeddingRegularizer(k=24)(EMBEDDINGS)
