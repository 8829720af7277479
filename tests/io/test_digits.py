import torch
from sklearn.datasets import load_digits

from lightly_collapse.io.digits import digits_split


def test_split_holds_every_scan_once_and_every_class_in_proportion():
    split = digits_split(size=8)
    images = torch.cat([split.train_images, split.test_images]).flatten(1)
    original = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    assert {tuple(row.tolist()) for row in images} == {tuple(row.tolist()) for row in original}
    assert len(images) == 1797
    shares = [labels.bincount() / len(labels) for labels in (split.train_labels, split.test_labels)]
    assert (shares[0] - shares[1]).abs().max() < 0.005


def test_seed_decides_the_split():
    first, again, other = digits_split(seed=1), digits_split(seed=1), digits_split(seed=2)
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_images, other.test_images)
