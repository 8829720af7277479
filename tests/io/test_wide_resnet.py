"""Wide residual networks: the published size and shape."""

import pytest
import torch

from lightly_collapse.io.backbones import create_backbone
from lightly_collapse.io.wide_resnet import WideResNet


def expected_parameters(depth, widen):
    """Counted from table 1 of the paper: convolutions, and two parameters a normalised channel."""
    total, inputs = 3 * 16 * 9, 16
    for outputs in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            total += 9 * outputs * (inputs + outputs) + 2 * (inputs + outputs)
            total += inputs * outputs if inputs != outputs else 0
            inputs = outputs
    return total + 2 * inputs


@pytest.mark.parametrize(("depth", "widen"), [(28, 2), (16, 1), (10, 4)])
def test_parameters_are_the_papers(depth, widen):
    count = sum(p.numel() for p in WideResNet(depth, widen).parameters())
    assert count == expected_parameters(depth, widen)


def test_wrn_28_2_has_about_one_and_a_half_million_parameters():
    model = create_backbone("wrn28_2")
    # 1.5 M in the paper, with the classifier.
    assert 1.44e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
    assert model.feature_dim == 128
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 128)
    assert model.layer3(
        model.layer2(model.layer1(model.conv1(torch.rand(1, 3, 32, 32))))
    ).shape == (
        1,
        128,
        8,
        8,
    )


@pytest.mark.parametrize("arguments", [(27, 2), (4, 2), (28, 0)])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"depth must be|widen must be"):
        WideResNet(*arguments)
