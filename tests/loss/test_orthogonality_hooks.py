"""Weights that a hook computes before each forward pass: pruning and the older norms."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lightly_collapse.loss import OrthogonalityRegularizer
from lightly_collapse.metrics import weight_spectra
from tests.helpers import gradient

KINDS = ("so", "dso", "mc", "srip", "conv")


def hooked(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 8)).double()
    for layer in (model[0], model[3]):
        layer.weight.data *= 4  # else srip is that of the filters pruned away, without gradient
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            HOOKS[name](layer)
    return model


def pruned_twice(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.3)
    prune.random_unstructured(layer, "bias", amount=0.5)
    prune.ln_structured(layer, "weight", amount=0.2, n=2, dim=0)


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "prune": pruned_twice,
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}
IMAGES = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_beside_the_graph_as_in_it(name: str, kind: str, train: bool) -> None:
    inside, beside = hooked(name).train(train), hooked(name).train(train)
    regularizer = OrthogonalityRegularizer(inside, kind, weight=0.5)
    (inside(IMAGES).square().mean() + regularizer()).backward()
    other = OrthogonalityRegularizer(beside, kind, weight=0.5)
    beside(IMAGES).square().mean().backward()
    penalty = other.accumulate_gradient()
    assert penalty is not None
    torch.testing.assert_close(0.5 * penalty, regularizer().detach())
    torch.testing.assert_close(gradients(beside), gradients(inside))
    # And the penalty takes part: without it the gradient is another.
    alone = hooked(name).train(train)
    alone(IMAGES).square().mean().backward()
    key = "0.weight_v" if name == "weight_norm" else "0.weight_orig"
    assert (gradients(alone)[key] - gradients(beside)[key]).norm() > 1e-3


@pytest.mark.parametrize("name", HOOKS)
def test_before_any_forward_pass(name: str) -> None:
    model = hooked(name)
    regularizer = OrthogonalityRegularizer(model, "so", weight=1.0)
    assert regularizer.accumulate_gradient() is not None
    assert {key.partition(".")[0] for key in gradients(model)} == {"0", "3"}
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_gradient_of_a_pruned_weight_is_that_of_the_masked_one() -> None:
    model = hooked("prune")
    regularizer = OrthogonalityRegularizer(model, "so", weight=1.0, include=r"^3\.")
    regularizer.accumulate_gradient()
    layer = model[3]
    w = (layer.weight_orig * layer.weight_mask).detach().requires_grad_()
    exact = gradient((w @ w.T - torch.eye(8).double()).square().sum(), w)
    torch.testing.assert_close(layer.weight_orig.grad, exact * layer.weight_mask)
    assert (layer.weight_orig.grad[layer.weight_mask == 0] == 0).all()


def test_only_an_optimizers_parameters() -> None:
    model = hooked("weight_norm")
    regularizer = OrthogonalityRegularizer(model, "so", weight=1.0)
    assert regularizer.accumulate_gradient([model[3].weight_v]) is not None
    assert set(gradients(model)) == {"3.weight_v"}


def test_frozen_hooked_weights_are_left_out() -> None:
    model = hooked("prune")
    regularizer = OrthogonalityRegularizer(model, "so", weight=1.0)
    model[0].requires_grad_(False)
    assert list(regularizer.residuals()) == ["3.weight"]


def test_spectra_are_those_of_the_weight_in_use() -> None:
    model = hooked("prune")
    w = (model[3].weight_orig * model[3].weight_mask).detach()
    s = torch.linalg.svdvals(w)
    found = weight_spectra(model)["3.weight"].normalized_eigenvalues
    torch.testing.assert_close(found, (s / s[0]).square())


def test_an_unknown_hook_is_an_error_beside_the_graph() -> None:
    model = nn.Linear(4, 3)
    source = nn.Parameter(torch.randn(3, 4))
    del model.weight
    model.weight = 2 * source  # type: ignore[assignment]
    regularizer = OrthogonalityRegularizer(model, "so", weight=1.0)
    assert gradient(regularizer(), source).norm() > 0
    with pytest.raises(ValueError, match=r"^module must hold parameters .* weight is computed by"):
        regularizer.accumulate_gradient()
