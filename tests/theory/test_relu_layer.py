"""One ReLU layer: the landscape of the hidden layer against closed forms and a trained network."""

import pytest
import torch

from lightly_collapse.theory import relu_layer
from lightly_collapse.theory.relu_layer import compare_relu_on_digits, spectrum_error


def test_moments_of_a_linear_layer_are_those_of_the_pixels():
    torch.manual_seed(0)
    images = torch.randn(2000, 3)
    layer = torch.nn.Linear(3, 3, bias=False)
    cross, second = relu_layer._moments(images, 0.5 * torch.eye(3), layer)
    weight = layer.weight.detach().double()
    data = (images.T @ images / len(images)).double()
    torch.testing.assert_close(cross, weight @ data @ weight.T, atol=0.02, rtol=0.02)
    noisy = data + 0.25 * torch.eye(3)
    torch.testing.assert_close(second, weight @ noisy @ weight.T, atol=0.02, rtol=0.02)


def test_the_prediction_is_the_closed_form_of_white_data():
    # a = 1 and 0.5 with augmentation 1: zeta = a / (a + c), and E z z'^T is zeta squared.
    found = relu_layer._predicted(torch.diag(torch.tensor([1.0, 0.5])), torch.eye(2), 3)
    torch.testing.assert_close(found, torch.tensor([1 / 4, 1 / 9, 0.0]).double())


def test_the_last_layer_ends_where_the_hidden_layer_says():
    (found,) = compare_relu_on_digits(
        [1.0], hidden=16, width=3, steps=1000, batch_size=128, learning_rate=0.02
    )
    assert spectrum_error(found.from_start, found.last_layer) < 0.05
    assert spectrum_error(found.from_end, found.trained) < 0.05
    # Training the hidden layer moves the spectrum away from what it was predicted to be before.
    assert spectrum_error(found.from_start, found.trained) > 0.2
    assert found.trained.shape == (3,)


def test_the_same_seed_gives_the_same_networks_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen = []
    a, b = (
        compare_relu_on_digits(
            [0.5], hidden=8, width=2, steps=3, progress=lambda *parts: seen.append(parts)
        )[0]
        for _ in range(2)
    )
    torch.testing.assert_close(torch.rand(3), expected)
    torch.testing.assert_close(a.trained, b.trained)
    assert seen[:2] == [(1, 2), (2, 2)]
    assert a.noise == pytest.approx(0.5)
