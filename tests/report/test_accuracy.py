import pytest
import torch

from lightly_collapse.report.accuracy import knn_accuracy, linear_accuracy


@pytest.fixture
def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = 4 * torch.eye(3, 20)
    features = centres[labels] + torch.randn(300, 20, generator=generator)
    return features[:200], labels[:200], features[200:], labels[200:]


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_accuracy])
def test_separable_classes_are_found_and_shuffled_labels_are_not(blobs, accuracy):
    train, train_labels, test, test_labels = blobs
    assert accuracy(train, train_labels, test, test_labels) > 0.95
    shuffled = train_labels[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert accuracy(train, shuffled, test, test_labels) < 0.6


def test_knn_votes_by_direction_alone(blobs):
    train, train_labels, test, test_labels = blobs
    scales = torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) + 0.01
    assert knn_accuracy(train, train_labels, test * scales, test_labels) == knn_accuracy(
        train, train_labels, test, test_labels
    )
