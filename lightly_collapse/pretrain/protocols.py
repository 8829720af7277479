"""The accuracies of classifiers on a frozen backbone, by the protocols that papers report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lightly_collapse.pretrain.data.base import PretrainData
from lightly_collapse.pretrain.linear_probe import (
    PROTOCOLS,
    LinearProtocol,
    top_accuracy,
    train_linear,
)
from lightly_collapse.report.accuracy import knn_accuracy, logistic_scores
from lightly_collapse.report.feature_pass import representations

Protocol = Literal["knn", "linear", "lars", "sgd"]
"""kNN vote, logistic regression, and the linear layers of `PROTOCOLS`."""

_TOP = 5


def probe_accuracies(
    model: nn.Module,
    data: PretrainData,
    protocols: Sequence[Protocol],
    labelled: Tensor,
    *,
    knn_k: Sequence[int] = (20, 200),
    knn_temperature: float = 0.07,
    epochs: int | None = None,
    crops: bool = True,
    device: torch.device,
    seed: int = 0,
) -> dict[str, float]:
    """Train classifiers on frozen representations and test them on held-out images.

    Args:
        model: the backbone.
        data: set up, with labels.
        protocols: which classifiers.
        labelled: indices of the training images whose labels are used.
        knn_k: numbers of neighbours; a vote takes all images where there are fewer.
        knn_temperature: of the vote.
        epochs: of a linear layer; the published number by default.
        crops: train linear layers on random crops and flips.
        device: where to compute.
        seed: of order, crops and first weights.

    Returns:
        Accuracies in [0, 1] by name, as `lightly_collapse.pretrain.evaluate.probe` has them.

    Raises:
        ValueError: if the data are at fault.
    """
    train, held_out = data.evaluation_batches()
    test, test_labels = representations(model, held_out, device)
    needs_bank = not crops or {"knn", "linear"} & set(protocols)
    bank, bank_labels = torch.empty(0), torch.empty(0)
    if needs_bank:
        bank, bank_labels = (part[labelled] for part in representations(model, train, device))
    classes = data.num_classes
    accuracy: dict[str, float] = {}

    def score(name: str, scores: Tensor) -> None:
        accuracy[name] = top_accuracy(scores, test_labels, 1)
        if classes > _TOP:
            accuracy[f"{name}_top5"] = top_accuracy(scores, test_labels, _TOP)

    for name in protocols:
        if name == "knn":
            for k in knn_k:
                accuracy[f"knn_{k}"] = knn_accuracy(
                    bank, bank_labels, test, test_labels, k=k, temperature=knn_temperature
                )
        elif name == "linear":
            score(name, logistic_scores(bank, bank_labels, test, classes))
        else:
            how = PROTOCOLS[name]
            how = how if epochs is None else replace(how, epochs=epochs)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                batches = (
                    _cropped(model, data, labelled, how, device, seed)
                    if crops
                    else _as_they_are(bank, bank_labels, how, seed)
                )
                layer = train_linear(batches, test.shape[1], classes, how, device)
            with torch.no_grad():
                score(name, layer(test.to(device)).cpu())
    return accuracy


def _cropped(
    model: nn.Module,
    data: PretrainData,
    labelled: Tensor,
    how: LinearProtocol,
    device: torch.device,
    seed: int,
) -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def epoch(_: int) -> Iterable[tuple[Tensor, Tensor]]:
        size, data.batch_size = data.batch_size, how.batch_size
        try:
            for batch in data.crop_batches(labelled, generator):
                yield representations(model, [batch], device)
        finally:
            data.batch_size = size

    return epoch


def _as_they_are(
    features: Tensor, labels: Tensor, how: LinearProtocol, seed: int
) -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def epoch(_: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order, how.batch_size):
            yield features[rows], labels[rows]

    return epoch
