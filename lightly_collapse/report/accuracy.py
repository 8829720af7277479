"""How much a frozen representation knows about the classes."""

from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor, from_numpy, full, inf
from torch.nn.functional import normalize


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Accuracy of a weighted k-nearest-neighbour vote by cosine similarity.

    Args:
        train_features: (n, d).
        train_labels: (n,) int64 classes from 0.
        test_features: (m, d).
        test_labels: (m,).
        k: number of neighbours; all of them where there are fewer.
        temperature: t in a vote's weight exp(similarity / t).

    Returns:
        The share of test rows predicted right, in [0, 1].

    Source: Wu et al., CVPR 2018, arXiv 1805.01978, as implemented by Lightly.

    Examples:
        >>> import torch
        >>> x, y = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
        >>> knn_accuracy(x, y, x, y, k=2)
        1.0
    """
    bank = normalize(train_features).T
    right = 0
    # In pieces: the vote holds a similarity of every row with every row of the bank.
    for start in range(0, len(test_labels), 1024):
        labels = test_labels[start : start + 1024]
        predicted = knn_predict(
            normalize(test_features[start : start + 1024]),
            bank,
            train_labels,
            num_classes=int(train_labels.max()) + 1,
            knn_k=min(k, len(train_features)),
            knn_t=temperature,
        )
        right += int((predicted[:, 0] == labels).sum())
    return right / len(test_labels)


def linear_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Accuracy of logistic regression on standardised features.

    Args:
        train_features: (n, d).
        train_labels: (n,) classes.
        test_features: (m, d).
        test_labels: (m,).

    Returns:
        The share of test rows predicted right, in [0, 1].

    Examples:
        >>> import torch
        >>> x, y = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
        >>> linear_accuracy(x, y, x, y)
        1.0
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    scores = logistic_scores(train_features, train_labels, test_features, classes)
    return float((scores.argmax(dim=1) == test_labels).double().mean())


def logistic_scores(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, classes: int
) -> Tensor:
    """Log-probabilities of the classes by logistic regression on standardised features.

    Args:
        train_features: (n, d).
        train_labels: (n,) classes.
        test_features: (m, d).
        classes: how many there are; one that has no training row has the score -inf.

    Returns:
        (m, classes).

    Examples:
        >>> import torch
        >>> x, y = torch.eye(2).repeat(4, 1), torch.tensor([0, 1]).repeat(4)
        >>> logistic_scores(x, y, x, classes=2).argmax(dim=1).equal(y)
        True
    """
    # Here, since a report without labels has no use for it, and it takes a second.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_features.numpy(), train_labels.numpy())
    found = from_numpy(probe.predict_log_proba(test_features.numpy()))
    scores = full((len(test_features), classes), -inf, dtype=found.dtype)
    scores[:, from_numpy(probe.classes_)] = found
    return scores
