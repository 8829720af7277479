import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lightly_collapse.theory import QuarticLandscape


def _normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _landscape(
    dimension: int, seed: int, negative: bool, feature_norm: float | None = None
) -> QuarticLandscape:
    a, b = _normal(2, dimension, 2 * dimension, seed=seed)
    eye = torch.eye(dimension)
    S = a @ a.T / (2 * dimension) + 0.1 * eye
    B = b @ b.T / (2 * dimension) + 0.1 * eye
    if negative:
        signs = torch.ones(dimension).index_fill(0, torch.arange(0, dimension, 3), -1.0)
        values, vectors = torch.linalg.eigh(B)
        B = vectors * (values * signs) @ vectors.T
    return QuarticLandscape(B, S, feature_norm)


def _descend(landscape: QuarticLandscape, width: int, seed: int) -> tuple[float, torch.Tensor]:
    """The loss and W that L-BFGS reaches from a random start."""
    dimension = len(landscape.S)

    def value(flat):
        W = torch.from_numpy(flat).reshape(width, dimension)
        return landscape.loss(W).item(), landscape.gradient(W).numpy().ravel()

    start = _normal(width * dimension, seed=seed).numpy() / dimension**0.5
    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    return float(found.fun), torch.from_numpy(found.x).reshape(width, dimension)


def _widths(dimension: int) -> tuple[int, int, int]:
    return max(1, dimension // 2), dimension, dimension + 3


# 200 in all: 20 seeds x 10, of dimensions 2 to 40, below, at and above width.
@pytest.mark.parametrize("seed", range(20))
def test_gradient_descent_reaches_the_predicted_minimum_and_rank(seed):
    for case in range(10):
        number = 10 * seed + case
        dimension = 2 + number % 39
        width = _widths(dimension)[number % 3]
        landscape = _landscape(dimension, number, negative=number % 2 == 0)
        loss, W = _descend(landscape, width, seed=number + 10_000)
        assert loss == pytest.approx(landscape.minimum_loss(width), rel=1e-6)
        assert loss == pytest.approx(landscape.loss(landscape.global_minimum(width)).item(), 1e-6)
        values = torch.linalg.eigvalsh(W @ landscape.S @ W.T).flip(0)
        assert int((values > 1e-4 * values[0]).sum()) == landscape.rank(width)
        torch.testing.assert_close(
            values[: landscape.rank(width)],
            landscape.eigenvalues(width)[: landscape.rank(width)],
            rtol=1e-2,
            atol=1e-4,
        )
        # What it maps to zero is what the theory names.
        collapsed = landscape.collapsed_directions(width)
        assert collapsed.shape == (dimension - landscape.rank(width), dimension)
        assert (W @ collapsed.T).norm() < 1e-2


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("feature_norm", [0.05, 1.0, 20.0])
def test_gradient_descent_with_normalized_features(seed, feature_norm):
    dimension = 3 + 2 * seed
    width = _widths(dimension)[seed % 3]
    landscape = _landscape(dimension, seed, True, feature_norm)
    loss, W = _descend(landscape, width, seed=seed + 500)
    assert loss == pytest.approx(landscape.minimum_loss(width), rel=1e-6)
    values = torch.linalg.eigvalsh(W @ landscape.S @ W.T)
    assert int((values > 1e-5 * values[-1]).sum()) == landscape.rank(width)


@pytest.mark.parametrize("seed", range(50))
def test_stationary_points_have_no_gradient(seed):
    dimension = 2 + seed % 20
    landscape = _landscape(
        dimension, seed, negative=True, feature_norm=2.0 if seed % 5 == 0 else None
    )
    width = dimension
    candidates = landscape.kept(width)
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, len(candidates) + 1, (), generator=generator))
    chosen = torch.randperm(len(candidates), generator=generator)[:count].tolist()
    if landscape.feature_norm is not None:
        chosen = candidates[:count]  # the water level of others may lie above one of them
    W = landscape.stationary_point(chosen, width)
    rotation, _ = torch.linalg.qr(_normal(width, width, seed=seed))
    for point in (W, rotation @ W):
        assert landscape.gradient(point).abs().max() < 1e-10
    # V^T V = 1/2 P Z P: as many directions as were named.
    assert int(torch.linalg.matrix_rank(W)) == len(chosen)
    assert landscape.loss(W) >= landscape.minimum_loss(width) - 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000), st.booleans())
def test_gradient_is_that_of_the_loss(dimension, width, seed, normalized):
    landscape = _landscape(dimension, seed, True, 0.7 if normalized else None)
    W = _normal(width, dimension, seed=seed + 1).requires_grad_()
    (expected,) = torch.autograd.grad(landscape.loss(W), W)
    torch.testing.assert_close(landscape.gradient(W.detach()), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.floats(0.1, 10))
def test_prediction_follows_a_change_of_coordinates(dimension, seed, scale):
    # x -> T x leaves zeta, and with it the embedding spectrum, as they were.
    landscape = _landscape(dimension, seed, True)
    T = scale * torch.eye(dimension, dtype=torch.float64) + 0.1 * _normal(
        dimension, dimension, seed=seed
    ).tril(-1)
    moved = QuarticLandscape(T @ landscape.B @ T.T, T @ landscape.S @ T.T)
    torch.testing.assert_close(
        moved.whitened_eigenvalues, landscape.whitened_eigenvalues, rtol=1e-6, atol=1e-8
    )


def test_signal_fraction_by_direction():
    # A direction of variances a and c keeps V^T V = a / (a+c) / 2 and W^2 = a / (2 (a+c)^2).
    a, c = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 3.0]).double()
    landscape = QuarticLandscape.from_covariances(a.diag(), c.diag())
    torch.testing.assert_close(landscape.whitened_eigenvalues, a / (a + c))
    W = landscape.global_minimum(3)
    torch.testing.assert_close((W.T @ W).diagonal(), a / (2 * (a + c) ** 2))
    clean = landscape.clean_spectrum(3, a.diag())
    torch.testing.assert_close(clean, (a / (a + c)) / 2**0.5)


def test_weight_decay_kills_what_lies_under_it_and_invariance_what_augmentation_rules():
    a, c = torch.tensor([1.0, 0.3, 0.1]).diag(), torch.tensor([0.1, 0.1, 0.1]).diag()
    assert QuarticLandscape.from_covariances(a, c).rank(3) == 3
    decayed = QuarticLandscape.from_covariances(a, c, weight_decay=0.2)
    assert decayed.rank(3) == 2
    torch.testing.assert_close(
        decayed.collapsed_directions(3).abs(), torch.eye(3, dtype=torch.float64)[2:]
    )
    assert QuarticLandscape.from_covariances(a, c, weight_decay=1.0).rank(3) == 0
    assert QuarticLandscape.from_covariances(a, c, weight_decay=1.0).minimum_loss(3) == 0
    assert QuarticLandscape.from_covariances(a, c, invariance=2.0).rank(3) == 2
    # Normalized features do not see weight decay, and cannot vanish.
    normalized = QuarticLandscape.from_covariances(a, c, weight_decay=1.0, feature_norm=5.0)
    assert normalized.rank(3) == 3


def test_escape_rate_is_half_of_nothing_else_than_the_hessian_at_the_origin():
    landscape = _landscape(4, 3, True)
    hessian = torch.autograd.functional.hessian(
        lambda w: landscape.loss(w.reshape(2, 4)), torch.zeros(8, dtype=torch.float64)
    )
    expected = -torch.linalg.eigvalsh(hessian)
    rates = landscape.escape_rates().repeat_interleave(2)
    torch.testing.assert_close(rates.sort().values, expected.sort().values)
    with pytest.raises(ValueError, match="no escape"):
        _landscape(4, 3, True, feature_norm=1.0).escape_rates()


def test_singular_covariance_takes_no_part_outside_its_range():
    a = torch.tensor([1.0, 0.0, 0.5]).diag()
    landscape = QuarticLandscape.from_covariances(a, torch.tensor([1.0, 0.0, 0.0]).diag())
    assert landscape.whitened_eigenvalues.shape == (2,)
    assert landscape.collapsed_directions(3).abs().tolist() == [[0, 1, 0]]
    assert landscape.rank(3) == 2
    decayed = QuarticLandscape(a - 0.6 * torch.eye(3), a)
    loss, W = _descend(decayed, 3, seed=0)
    assert loss == pytest.approx(decayed.minimum_loss(3), rel=1e-6)
    assert (W @ decayed.collapsed_directions(3).T).abs().max() < 1e-3


def test_bias_gives_the_constant_feature_and_otherwise_the_centred_landscape():
    a, c = _normal(2, 4, 8, seed=0)
    a, c = a @ a.T / 8, c @ c.T / 8
    mean = torch.tensor([3.0, -1.0, 0.0, 2.0])
    centred = QuarticLandscape.from_covariances(a, c)
    biased = QuarticLandscape.from_covariances(a, c, mean=mean, bias=True)
    expected = torch.cat([torch.ones(1).double(), centred.whitened_eigenvalues])
    torch.testing.assert_close(biased.whitened_eigenvalues, expected)
    # Without a bias the mean is a direction with nothing but signal.
    bare = QuarticLandscape.from_covariances(a, c, mean=1e3 * mean)
    assert bare.whitened_eigenvalues[0] > 0.999


def test_spectral_contrastive_loss_is_four_landscapes():
    x, y, mean = _normal(3, 500, 3, seed=0)
    x, y = x + mean[:1], 0.5 * y + x + mean[:1]  # not centred: second moments
    both = torch.cat([x, y])
    S, B = both.T @ both / len(both), (x.T @ y + y.T @ x) / (2 * len(x))
    landscape = QuarticLandscape(B, S)
    W = _normal(2, 3, seed=1)
    loss = -2 * ((x @ W.T) * (y @ W.T)).sum(1).mean()
    loss = loss + ((both @ W.T) @ (both @ W.T).T).square().mean()
    torch.testing.assert_close(loss, 4 * landscape.loss(W / 2**0.5))


def test_infonce_is_two_landscapes_to_fourth_order():
    # Many Gaussian negatives, a small embedding: the difference is of sixth order.
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    x, y = (
        clean + 0.5 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    x, y = x - x.mean(0), y - y.mean(0)
    temperature = 0.2
    landscape = QuarticLandscape(
        (x.T @ y + y.T @ x) / (2 * len(x)), (x.T @ x + y.T @ y) / (2 * len(x))
    )
    W = 0.15 * torch.eye(2, dtype=torch.float64)
    logits = (x @ W.T) @ (y @ W.T).T / temperature
    loss = -logits.log_softmax(1).diagonal().mean() - torch.tensor(len(x)).log()
    quartic = 2 * landscape.loss(W / (2 * temperature) ** 0.5)
    quadratic = -2 * ((W @ landscape.B) * W).sum() / (2 * temperature)
    assert (loss - quartic).abs() < 0.2 * (loss - quadratic).abs()


def test_rare_classes_survive_while_between_exceeds_augmentation():
    means = torch.eye(3)
    for rare in (0.3, 0.03, 0.003):
        p = torch.tensor([0.5, 0.5 - rare, rare])
        landscape = QuarticLandscape.from_mixture(means, p, 1e-5 * torch.eye(3))
        # Two differences between three classes; whitened they hardly feel the frequency.
        assert landscape.whitened_eigenvalues[1] > 0.99
    weighted = QuarticLandscape.from_mixture(means, 7 * p, 1e-5 * torch.eye(3))
    torch.testing.assert_close(weighted.whitened_eigenvalues, landscape.whitened_eigenvalues)


_EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuarticLandscape(_EYE, torch.tensor([[1.0, 1.0], [0.0, 1.0]])), "S must be symm"),
        (lambda: QuarticLandscape(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), _EYE), "B must be symm"),
        (lambda: QuarticLandscape(_EYE, torch.diag(torch.tensor([1.0, -0.1]))), "S must be posit"),
        (lambda: QuarticLandscape(_EYE, torch.zeros(2, 2)), "S must not be zero"),
        (lambda: QuarticLandscape(_EYE, torch.eye(3)), "same shape"),
        (lambda: QuarticLandscape(torch.eye(3)[:2], _EYE), "B must be a square matrix"),
        (lambda: QuarticLandscape(_EYE * float("nan"), _EYE), "B must be finite"),
        (lambda: QuarticLandscape(_EYE, torch.diag(torch.tensor([1.0, 0.0]))), "no minimum"),
        (lambda: QuarticLandscape(torch.ones(2, 2), torch.diag(torch.tensor([1.0, 0]))), "couple"),
        (lambda: QuarticLandscape(_EYE, _EYE, feature_norm=0.0), "feature_norm must be positive"),
        (lambda: QuarticLandscape(_EYE, _EYE).global_minimum(0), "width must be at least 1, got 0"),
        (lambda: QuarticLandscape(_EYE, _EYE).rank(-1), "width must be at least 1"),
        (lambda: QuarticLandscape(_EYE, _EYE).loss(torch.eye(3)), r"W must have shape \(width, 2"),
        (lambda: QuarticLandscape(_EYE, _EYE, 1.0).loss(0 * _EYE), "W must not vanish"),
        (lambda: QuarticLandscape(_EYE, _EYE).stationary_point([0, 0], 2), "at most once"),
        (lambda: QuarticLandscape(_EYE, _EYE).stationary_point([2], 2), "at most once in 0..1"),
        (lambda: QuarticLandscape(_EYE, _EYE).stationary_point([0, 1], 1), "at most width = 1"),
        (lambda: QuarticLandscape(-_EYE, _EYE).stationary_point([0], 1), "water level"),
        (lambda: QuarticLandscape(_EYE, _EYE, 1.0).stationary_point([], 1), "must name an index"),
        (
            lambda: QuarticLandscape.from_covariances(_EYE, _EYE, weight_decay=-1.0),
            "weight_decay must not be negative, got -1.0",
        ),
        (lambda: QuarticLandscape.from_covariances(_EYE, -_EYE), "augmentation must be positive"),
        (lambda: QuarticLandscape.from_covariances(_EYE, torch.eye(3)), "same shape"),
        (lambda: QuarticLandscape.from_covariances(_EYE, _EYE, bias=True), "give the mean too"),
        (lambda: QuarticLandscape.from_covariances(_EYE, _EYE, mean=torch.ones(3)), "mean must"),
        (
            lambda: QuarticLandscape.from_mixture(_EYE, torch.tensor([1.0, -1.0]), _EYE),
            "frequencies must be finite",
        ),
        (lambda: QuarticLandscape.from_mixture(_EYE, torch.ones(3), _EYE), "means and frequen"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
