"""Scores of held-out representations during training."""

import torch
from torch import Tensor, nn

from lightly_collapse._distributed import gather_rows, gathering
from lightly_collapse.functional import rankme
from lightly_collapse.report.accuracy import knn_accuracy


class HeldOut:
    """Collects representations of training images and of held-out ones, and scores the latter.

    With several processes every one collects its share, and all get the scores of the whole.

    Examples:
        >>> held_out = HeldOut()
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> held_out.add(0, x, y)
        >>> held_out.add(1, x, y)
        >>> sorted(held_out.scores(None))
        ['knn', 'rankme']
    """

    def __init__(self) -> None:
        self._features: dict[int, list[Tensor]] = {0: [], 1: []}
        self._labels: dict[int, list[Tensor]] = {0: [], 1: []}

    def add(self, loader: int, features: Tensor, labels: Tensor) -> None:
        """Keep a batch.

        Args:
            loader: 0 for training images, 1 for held-out ones.
            features: (n, d).
            labels: (n,) classes; negative where there are none.
        """
        self._features[loader].append(features.detach().float())
        self._labels[loader].append(labels)

    def clear(self) -> None:
        """Forget every batch."""
        for kept in (self._features, self._labels):
            for batches in kept.values():
                batches.clear()

    def scores(self, probe: nn.Module | None) -> dict[str, float]:
        """Score what was collected, and forget it.

        Args:
            probe: the online linear probe, from (n, d) to (n, classes).

        Returns:
            `rankme`, and where there are labels `knn` and with a probe `online_linear`, the
            accuracies in [0, 1].
        """
        x, y = self._all(1)
        bank, bank_labels = self._all(0)
        self.clear()
        scores = {"rankme": float(rankme(x))}
        if int(bank_labels.max()) > 0:
            scores["knn"] = knn_accuracy(bank, bank_labels, x, y)
        if probe is not None:
            scores["online_linear"] = float((probe(x).argmax(dim=1) == y).float().mean())
        return scores

    def _all(self, loader: int) -> tuple[Tensor, Tensor]:
        features, labels = torch.cat(self._features[loader]), torch.cat(self._labels[loader])
        if gathering():
            return gather_rows(features), gather_rows(labels)
        return features, labels
