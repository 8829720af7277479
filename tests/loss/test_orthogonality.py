import math
import pickle
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightly_collapse.functional import orthogonality_penalty
from lightly_collapse.loss import OrthogonalityRegularizer
from tests.helpers import orthonormal

KINDS = ("so", "dso", "mc", "srip")


class Encoder(nn.Module):
    """Everything that is regularized, and everything that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(3, 4, 3)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv3d = nn.Conv3d(2, 4, 2)
        self.norm = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.LayerNorm(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.GroupNorm(2, 12))
        self.up1d = nn.ConvTranspose1d(4, 6, 3)
        self.up = nn.ConvTranspose2d(12, 6, 2, groups=3)
        self.up3d = nn.ConvTranspose3d(4, 2, 2)
        self.embedding = nn.Embedding(10, 8)
        self.fc = nn.Linear(8, 20)


REGULARIZED = {
    "conv1d.weight": (1, False),
    "stem.weight": (1, False),
    "conv3d.weight": (1, False),
    "layer1.0.weight": (8, False),
    "layer2.0.weight": (4, False),
    "up1d.weight": (1, True),
    "up.weight": (3, True),
    "up3d.weight": (1, True),
    "fc.weight": (1, False),
}


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def by_hand(module: nn.Module, names: dict[str, tuple[int, bool]], kind: str) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    return {
        name: orthogonality_penalty(parameters[name], kind, groups, transposed)
        for name, (groups, transposed) in names.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_convolution_and_linear_layer_and_nothing_else(encoder: Encoder, kind: str) -> None:
    regularizer = OrthogonalityRegularizer(encoder, kind=kind, weight=0.5)
    exact = by_hand(encoder, REGULARIZED, kind)
    residuals = regularizer.residuals()
    assert list(residuals) == list(REGULARIZED)
    for name, value in residuals.items():
        assert isinstance(value, float)
        assert value == pytest.approx(exact[name].item(), rel=1e-6, abs=1e-7)
    penalty = regularizer()
    assert penalty.shape == ()
    torch.testing.assert_close(penalty, 0.5 * torch.stack(list(exact.values())).sum())
    penalty.backward()
    touched = {n for n, p in encoder.named_parameters() if p.grad is not None}
    # The mutual coherence of a depthwise convolution, one filter a group, is zero.
    assert touched == set(REGULARIZED)


def test_gradient_is_that_of_the_formula() -> None:
    backbone = small().double()
    OrthogonalityRegularizer(backbone, kind="so", weight=0.1)().backward()
    for layer in (backbone[0], backbone[2]):
        w = layer.weight.detach()
        torch.testing.assert_close(layer.weight.grad, 0.4 * (w @ w.T @ w - w))
        assert layer.bias.grad is None


def test_a_single_layer_is_a_module_too() -> None:
    layer = nn.Conv2d(3, 4, 3)
    regularizer = OrthogonalityRegularizer(layer, weight=1.0)
    assert list(regularizer.residuals()) == ["weight"]
    torch.testing.assert_close(regularizer(), orthogonality_penalty(layer.weight))


def test_zero_at_orthonormal_filters() -> None:
    layer = nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(orthonormal(4, 6))
    for kind in ("so", "srip", "mc"):
        assert OrthogonalityRegularizer(layer, kind=kind, weight=1.0)().item() < 1e-13


def test_training_with_it_orthogonalises_the_weights() -> None:
    backbone = small()
    regularizer = OrthogonalityRegularizer(backbone, kind="so", weight=1.0)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        regularizer().backward()
        optimizer.step()
    assert max(regularizer.residuals().values()) < 1e-6
    torch.testing.assert_close(backbone[2].weight @ backbone[2].weight.T, torch.eye(3))


# --- what it holds of the weights -------------------------------------------------------------


def test_keeps_the_weights_out_of_its_state(encoder: Encoder) -> None:
    regularizer = OrthogonalityRegularizer(encoder)
    assert not regularizer.state_dict()
    assert not list(regularizer.parameters())
    assert not list(regularizer.buffers())
    assert not list(regularizer.children())
    regularizer.load_state_dict({})
    parent = nn.ModuleDict({"backbone": encoder, "regularizer": regularizer})
    assert {*parent.state_dict()} == {f"backbone.{name}" for name in encoder.state_dict()}
    assert len(list(parent.parameters())) == len(list(encoder.parameters()))


def test_follows_the_weights_when_they_move_or_change() -> None:
    backbone = small()
    regularizer = OrthogonalityRegularizer(backbone, weight=1.0)
    before = regularizer()
    assert before.dtype == torch.float32
    regularizer.to(torch.float64)  # on its own, the weights are not its to convert
    assert backbone[0].weight.dtype == torch.float32
    nn.ModuleList([backbone, regularizer]).to(torch.float64)
    after = regularizer()
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before)
    backbone.load_state_dict({k: 2 * v for k, v in backbone.state_dict().items()})
    torch.testing.assert_close(regularizer(), by_hand_so(backbone))
    backbone[0].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    torch.testing.assert_close(regularizer(), by_hand_so(backbone))


def by_hand_so(backbone: nn.Sequential) -> Tensor:
    return orthogonality_penalty(backbone[0].weight) + orthogonality_penalty(backbone[2].weight)


class Learner(nn.Module):
    """A module as a user writes it, with the backbone and its regularizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small()
        self.regularizer = OrthogonalityRegularizer(self.backbone, weight=1.0)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(x)
        return features.square().mean() + self.regularizer()


def copy_by_pickle(module: Learner) -> Learner:
    learner: Learner = pickle.loads(pickle.dumps(module))
    return learner


@pytest.mark.parametrize("copy", [deepcopy, copy_by_pickle])
def test_a_copy_of_the_parent_regularizes_the_copied_weights(copy) -> None:  # type: ignore[no-untyped-def]
    original = Learner()
    value = original.regularizer().item()
    copied = copy(original)
    assert copied.regularizer().item() == value
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()
    assert copied.regularizer().item() == value
    copied.regularizer().backward()
    assert copied.backbone[0].weight.grad is not None
    assert original.backbone[0].weight.grad is None
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert copied.regularizer().item() == 6 + 3 - 2  # ||I||^2 of the smaller sides, 4 and 3


def test_torch_save_and_load(tmp_path: Path) -> None:
    learner = Learner()
    torch.save(learner, tmp_path / "learner.pt")
    loaded = torch.load(tmp_path / "learner.pt", weights_only=False)
    assert loaded.regularizer() == learner.regularizer()
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    other = Learner()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.regularizer() == learner.regularizer()


# --- which weights ----------------------------------------------------------------------------


def test_frozen_weights_are_left_out_until_thawed() -> None:
    backbone = small()
    backbone[0].requires_grad_(False)
    regularizer = OrthogonalityRegularizer(backbone, weight=1.0)
    assert list(regularizer.residuals()) == ["2.weight"]
    torch.testing.assert_close(regularizer(), orthogonality_penalty(backbone[2].weight))
    backbone[0].requires_grad_(True)
    assert list(regularizer.residuals()) == ["0.weight", "2.weight"]
    torch.testing.assert_close(regularizer(), by_hand_so(backbone))
    backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^module must have a weight that requires a gradient"):
        regularizer()


def test_a_frozen_bias_freezes_no_weight() -> None:
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad_(False)
    assert OrthogonalityRegularizer(layer)().requires_grad


def test_tied_weights_count_once() -> None:
    backbone = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    backbone[1].weight = backbone[0].weight
    regularizer = OrthogonalityRegularizer(backbone, weight=1.0)
    assert list(regularizer.residuals()) == ["0.weight"]
    torch.testing.assert_close(regularizer(), orthogonality_penalty(backbone[0].weight))
    shared = nn.Linear(5, 5)
    twice = OrthogonalityRegularizer(nn.Sequential(shared, nn.ReLU(), shared), weight=1.0)
    torch.testing.assert_close(twice(), orthogonality_penalty(shared.weight))


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ("stem", None, ["stem.weight"]),
        (["stem", r"^fc\."], None, ["stem.weight", "fc.weight"]),
        (r"^layer\d", None, ["layer1.0.weight", "layer2.0.weight"]),
        (("fc", "stem", "fc"), None, ["stem.weight", "fc.weight"]),
        (r"layer\d", "layer2", ["layer1.0.weight"]),
        (None, r"^(conv|up|layer)", ["stem.weight", "fc.weight"]),
        (None, ["conv1d", "up", "layer1", "layer2", "fc", "conv3d"], ["stem.weight"]),
        (None, [], list(REGULARIZED)),
        (r"\.weight$", None, list(REGULARIZED)),
    ],
    ids=str,
)
def test_include_and_exclude(encoder: Encoder, include, exclude, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    regularizer = OrthogonalityRegularizer(encoder, weight=1.0, include=include, exclude=exclude)
    assert list(regularizer.residuals()) == names
    exact = by_hand(encoder, {name: REGULARIZED[name] for name in names}, "so")
    torch.testing.assert_close(regularizer(), torch.stack(list(exact.values())).sum())


# --- parametrized weights ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weight_norm(kind: str) -> None:
    layer = parametrizations.weight_norm(nn.Linear(5, 4))
    regularizer = OrthogonalityRegularizer(nn.Sequential(layer), kind=kind, weight=1.0)
    assert list(regularizer.residuals()) == ["0.weight"]
    penalty = regularizer()
    torch.testing.assert_close(penalty, orthogonality_penalty(layer.weight, kind))
    penalty.backward()
    for p in layer.parametrizations["weight"].parameters():
        assert p.grad is not None
        assert p.grad.isfinite().all()
    with torch.no_grad():
        layer.parametrizations["weight"].original0.mul_(2)
    torch.testing.assert_close(regularizer(), orthogonality_penalty(layer.weight, kind))


def test_orthogonal_parametrization_has_no_penalty() -> None:
    layer = parametrizations.orthogonal(nn.Linear(6, 4))
    regularizer = OrthogonalityRegularizer(layer, weight=1.0)
    penalty = regularizer()
    assert penalty.item() < 1e-10
    penalty.backward()
    assert list(regularizer.residuals()) == ["weight"]


def test_frozen_parametrization() -> None:
    backbone = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 3))
    backbone[0].requires_grad_(False)
    assert list(OrthogonalityRegularizer(backbone).residuals()) == ["1.weight"]


def test_parametrized_after_it_was_made() -> None:
    backbone = small()
    regularizer = OrthogonalityRegularizer(backbone, weight=1.0)
    before = regularizer()
    parametrizations.weight_norm(backbone[0])
    torch.testing.assert_close(regularizer(), before)


# --- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrap", [lambda m: m, parametrizations.weight_norm, parametrizations.orthogonal]
)
def test_bfloat16_autocast_gives_the_float32_value(kind: str, wrap) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(2)
    layer = wrap(nn.Linear(24, 16))
    # One for each: kind srip starts at the vectors of its last call.
    regularizer, other = (OrthogonalityRegularizer(layer, kind, weight=1.0) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = regularizer()
        residuals = regularizer.residuals()
    outside = other()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)
    assert residuals == other.residuals()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    backbone = small().to(dtype)
    penalty = OrthogonalityRegularizer(backbone, weight=1e-6)()
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, 1e-6 * by_hand_so(backbone.float()))


def test_layers_of_different_dtypes() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64))
    penalty = OrthogonalityRegularizer(backbone, weight=1.0)()
    exact = sum(orthogonality_penalty(layer.weight).double() for layer in backbone)
    torch.testing.assert_close(penalty.double(), exact, rtol=1e-6, atol=0)


def test_weight_zero_switches_off() -> None:
    backbone = small()
    penalty = OrthogonalityRegularizer(backbone, weight=0)()
    assert penalty.item() == 0
    penalty.backward()
    assert (backbone[0].weight.grad == 0).all()


def test_prints_its_settings(encoder: Encoder) -> None:
    assert "kind='srip', weight=0.001, layers=9" in repr(
        OrthogonalityRegularizer(encoder, kind="srip", weight=1e-3)
    )


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "SO"}, "^kind must be one of so, dso, mc, srip"),
        ({"weight": -1e-6}, "^weight must"),
        ({"weight": math.nan}, "^weight must"),
        ({"weight": math.inf}, "^weight must"),
        ({"include": "layer9"}, "^include pattern 'layer9' matches no weight; .*stem.weight"),
        ({"include": ["stem", "layer9"]}, "^include pattern 'layer9'"),
        ({"include": "norm"}, "^include pattern 'norm'"),
        ({"include": "bias"}, "^include pattern 'bias'"),
        ({"include": "embedding"}, "^include pattern 'embedding'"),
        ({"include": []}, "^include must"),
        ({"include": "("}, re.escape("include must hold regular expressions, got '('")),
        ({"exclude": "layer9"}, "^exclude pattern 'layer9' matches no weight"),
        ({"exclude": "["}, "^exclude must hold regular expressions"),
        ({"exclude": ".*"}, "^exclude must leave a weight"),
        ({"include": "stem", "exclude": "stem"}, "^exclude must leave a weight"),
    ],
    ids=str,
)
def test_bad_settings(encoder: Encoder, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrthogonalityRegularizer(encoder, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.Sequential(),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Embedding(4, 4), nn.LayerNorm(4)),
    ],
    ids=str,
)
def test_module_without_weights(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"^module must contain a .*{type(module).__name__}"):
        OrthogonalityRegularizer(module)


def test_module_with_frozen_weights_only() -> None:
    with pytest.raises(ValueError, match=r"^module must have a weight that requires a gradient"):
        OrthogonalityRegularizer(small().requires_grad_(False))


def test_module_without_shapes() -> None:
    with pytest.raises(ValueError, match=r"^module must have its shapes, but 0.weight is lazy"):
        OrthogonalityRegularizer(nn.Sequential(nn.LazyLinear(4)))
