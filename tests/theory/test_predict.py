import random

import numpy as np
import pytest
import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import nn
from torchvision import transforms as v1

from lightly_collapse.theory import QuarticLandscape, predict_collapse
from lightly_collapse.theory.against_training import (
    STRENGTHS,
    compare_on_digits,
    digit_pixels,
    noise_directions,
    predict,
    train_spectral_contrastive,
)
from lightly_collapse.theory.estimate import Loss, estimate_spectrum
from lightly_collapse.theory.views import PooledPixels, collect_views, estimate_covariances


class _Noise:
    """Additive noise of given strengths by coordinate."""

    def __init__(self, *strength: float) -> None:
        self.strength = torch.tensor(strength)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.strength * torch.randn(len(self.strength))


def _gaussian(n: int, *scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.tensor(scale) * torch.randn(n, len(scale), generator=generator))


def _two(transform):
    return MultiViewTransform([transform, transform])


def test_covariances_are_unbiased():
    # Averaged over many small samples of 3 images and 2 views, the truth comes out.
    generator = torch.Generator().manual_seed(0)
    clean = 2 * torch.randn(6000, 3, 1, 1, generator=generator)
    views = clean + 3 * torch.randn(6000, 3, 2, 1, generator=generator)
    estimates = [estimate_covariances(sample) for sample in views]
    assert torch.stack([e.data for e in estimates]).mean().item() == pytest.approx(4, abs=0.4)
    assert torch.stack([e.augmentation for e in estimates]).mean().item() == pytest.approx(9, 0.03)


def test_bootstrap_weights_are_repeated_images():
    views = torch.randn(5, 3, 2, dtype=torch.float64)
    weighted = estimate_covariances(views, torch.tensor([2, 0, 1, 1, 1]))
    repeated = estimate_covariances(views[[0, 0, 2, 3, 4]])
    torch.testing.assert_close(weighted.data, repeated.data)
    torch.testing.assert_close(weighted.augmentation, repeated.augmentation)


def test_signal_fractions_and_leave_one_out():
    # a = (4, 1, 1), c = (0, 1, 100): fractions 1, 1/2, 1/101.
    transform = _two(v1.Compose([_Noise(0, 1, 0), v1.Lambda(_Noise(0, 0, 10))]))
    prediction = predict_collapse(_gaussian(3000, 2, 1, 1), transform, rtol=0.05)
    expected = torch.tensor([1, 1 / 2, 1 / 101], dtype=torch.float64)
    torch.testing.assert_close(prediction.signal_fraction, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(prediction.spectrum, expected / 2**0.5, atol=0.03, rtol=0)
    assert prediction.collapsed == 1
    assert prediction.collapsed_interval == (1, 1)
    patterns = prediction.patterns / prediction.patterns.norm(dim=1, keepdim=True)
    torch.testing.assert_close(patterns.abs(), torch.eye(3).double(), atol=0.15, rtol=0)
    assert [step.name for step in prediction.leave_one_out] == ["_Noise", "_Noise (2)"]
    weak, strong = prediction.leave_one_out
    assert (weak.collapsed_cost, strong.collapsed_cost) == (0, 1)
    assert strong.collapsed == 0
    assert weak.signal_cost == pytest.approx(1 / 2, abs=0.03)
    assert strong.signal_cost == pytest.approx(100 / 101, abs=0.03)
    for step in (weak, strong):
        low, high = step.effective_rank_cost_interval
        assert low <= step.effective_rank_cost <= high
    assert strong.effective_rank_cost_interval[0] > 0.2


def test_interval_covers_what_more_images_would_give():
    transform = _two(_Noise(1, 1, 1, 1))
    truth = torch.tensor([0.8, 0.5, 0.2, 0.05], dtype=torch.float64) / 2**0.5
    scale = (truth * 2**0.5 / (1 - truth * 2**0.5)).sqrt().tolist()
    inside = torch.zeros(4)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        images = list(torch.tensor(scale) * torch.randn(200, 4, generator=generator))
        sample = collect_views(
            images, transform, PooledPixels(8), n_images=200, n_views=16, seed=seed
        )
        low, high = estimate_spectrum(sample, Loss(), 1e-2, 40, seed).interval("spectrum", 0.95)
        inside += (low <= truth) & (truth <= high)
    assert (inside >= 15).all()


def test_width_decay_and_norm_reach_the_landscape():
    images, transform = _gaussian(500, 2, 1, 0.1), _two(_Noise(0.1, 0.1, 0.1))
    narrow = predict_collapse(images, transform, width=2)
    assert narrow.spectrum.shape == (2,)
    decayed = predict_collapse(images, transform, weight_decay=0.5)
    assert decayed.collapsed == 1
    assert decayed.landscape.rank(3) == 2
    everything = predict_collapse(images, transform, weight_decay=100.0)
    assert everything.collapsed == 3
    assert everything.effective_rank == 0
    assert predict_collapse(images, transform, weight_decay=100.0, feature_norm=5.0).collapsed == 0
    assert predict_collapse(images, transform, invariance=3.0).collapsed == 1


def _pictures(n: int = 12, size: tuple[int, int] = (20, 16)) -> list[tuple[Image.Image, int]]:
    generator = np.random.default_rng(0)
    return [
        (Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)), k)
        for k in range(n)
    ]


def test_pictures_through_lightly_and_an_encoder():
    transform = SimCLRTransform(input_size=16)
    prediction = predict_collapse(_pictures(), transform, n_views=3, pool=2, resamples=5)
    assert prediction.feature_shape == (3, 2, 2)
    assert prediction.patterns.shape == (12, 12)
    assert prediction.n_images == 12
    assert len(prediction.leave_one_out) == 5

    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    encoder.train()
    before = [p.clone() for p in encoder.state_dict().values()]
    encoded = predict_collapse(
        _pictures(), transform, encoder, n_views=2, resamples=5, leave_one_out=False
    )
    assert encoded.width == 5
    assert encoded.feature_shape is None
    assert encoder.training
    assert all(map(torch.equal, before, encoder.state_dict().values()))


def test_a_seed_fixes_the_result_and_the_random_states_are_left_alone():
    transform = SimCLRTransform(input_size=16)
    options = {"n_images": 8, "n_views": 2, "pool": 2, "resamples": 3, "leave_one_out": False}
    # Lightly's transforms draw from all three global generators.
    generators = (random.seed, np.random.seed, torch.manual_seed)
    for start in generators:
        start(1)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    for start in generators:
        start(1)
    first = predict_collapse(_pictures(), transform, **options)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    second = predict_collapse(_pictures(), transform, **options)
    assert torch.equal(first.spectrum, second.spectrum)
    other = predict_collapse(_pictures(), transform, **options, seed=1)
    assert not torch.equal(first.spectrum, other.spectrum)


def _check(comparison) -> None:
    assert comparison.largest_error() < 0.1
    landscape = comparison.correlation(finite_time=False)
    assert comparison.correlation() > max(0.98, landscape)
    # Almost without noise the landscape's spectrum is nearly flat: little is left to correlate.
    assert landscape >= (0.85 if comparison.noise >= 0.1 else 0.8)


def test_prediction_against_training_on_the_digits():
    (comparison,) = compare_on_digits([1.0], steps=1000)
    _check(comparison)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prediction_against_training_on_the_digits_at_ten_strengths(seed):
    assert len(STRENGTHS) == 10
    for comparison in compare_on_digits(seed=seed):
        _check(comparison)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_weight_decay_kills_exactly_the_directions_named(noise):
    images, root = digit_pixels(), noise * noise_directions(64, seed=0)
    # A weight decay at which no direction lies so near the border that sampling decides it.
    exact = [torch.cov(images.T), root.T @ root]
    weight_decay = max(
        torch.linspace(0.01, 0.15, 141).tolist(),
        key=lambda g: (
            QuarticLandscape.from_covariances(*exact, weight_decay=g)
            .whitened_eigenvalues.abs()
            .min()
        ),
    )
    landscape = predict(images, root, weight_decay=weight_decay).landscape
    zeta = landscape.whitened_eigenvalues
    assert 5 < landscape.rank(64) < 40
    weight = train_spectral_contrastive(images, root, weight_decay=2 * weight_decay, seed=1)
    values = torch.linalg.svdvals(weight @ landscape.patterns.T)
    border = zeta[landscape.rank(64) - 1]
    assert int((values > 0.3 * border.sqrt()).sum()) == landscape.rank(64)
    # The vanished subspace, within ten degrees.
    null = torch.linalg.svd(weight).Vh[landscape.rank(64) :]
    named = torch.linalg.qr(landscape.collapsed_directions(64).T).Q
    cosines = torch.linalg.svdvals(null @ named)
    assert cosines.shape == (64 - landscape.rank(64),)
    assert torch.rad2deg(cosines.min().clamp(max=1).acos()) < 10


@pytest.mark.slow
def test_spectral_contrastive_loss_over_explicit_pairs_has_the_same_minimum():
    # The loss as written, over all pairs of sampled views, against its moments.
    images, root = digit_pixels()[:500, 10:40], 0.3 * noise_directions(30, seed=0)
    weight = train_spectral_contrastive(images, root, views=2, seed=1)
    generator = torch.Generator().manual_seed(1)
    x = (images[:, None] + torch.randn(500, 2, 15, generator=generator) @ root).double()

    def loss(w):
        z = x @ w.T
        flat = z.flatten(0, 1)
        return (flat @ flat.T).square().mean() - 2 * (z[:, 0] * z[:, 1]).sum(1).mean()

    w = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(w), w)
    assert gradient.abs().max() < 1e-3
    for seed in range(3):
        shift = 0.05 * torch.randn(w.shape, generator=torch.Generator().manual_seed(seed))
        assert loss(weight + shift) > loss(weight)


def test_finite_time_is_steeper_and_checked():
    prediction = predict_collapse(_gaussian(300, 1, 0.1), _two(_Noise(0.01, 0.01)))
    run = prediction.after_training(500, 1e-3, batch_size=64, seeds=[0, 1])
    late, early = run.spectrum[-1, :, 1] / run.spectrum[-1, :, 0], prediction.spectrum[1] ** 2
    assert (late < 0.5 * early / prediction.spectrum[0] ** 2).all()


def test_json_is_complete_and_finite():
    record = predict_collapse(_gaussian(50, 1, 1), _two(v1.Compose([_Noise(1, 1)]))).to_dict()
    assert record["leave_one_out"][0]["name"] == "_Noise"
    assert len(record["spectrum"]) == record["width"] == 2
    assert np.isfinite(record["spectrum_interval"]).all()


_GOOD = {"dataset": _gaussian(10, 1, 1), "transform": _two(_Noise(1, 1)), "resamples": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_views": 1}, "n_views must be at least 2, got 1"),
        ({"n_images": 1}, "n_images must be at least 2, got 1"),
        ({"dataset": _gaussian(1, 1, 1)}, "dataset must hold at least 2 images, got 1"),
        ({"transform": _Noise(1, 1)}, "must return a list of at least two views, got a T"),
        ({"transform": lambda x: [x]}, "at least two views, got 1"),
        ({"transform": lambda x: [1, 2]}, r"tensors of shape \(C, H, W\) or \(D,\), got int"),
        ({"dataset": [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)], "transform": lambda x: [x, x]},
         "transform must bring all images to one size"),
        ({"encoder": lambda x: x[:1]}, "encoder must return a tensor with 10 rows"),
        ({"encoder": lambda x: x * float("nan")}, "encoder must give finite features"),
        ({"transform": lambda x: [0 * x, 0 * x]}, "S must not be zero"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"rtol": 0.0}, "rtol must lie between 0 and 1"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"resamples": 1}, "resamples must be at least 2"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"pool": 0}, "pool must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_collapse(**{**_GOOD, **arguments})


def test_images_of_different_sizes_without_a_resize():
    pictures = _pictures(2) + _pictures(2, size=(24, 24))
    with pytest.raises(ValueError, match=r"one size \(add a Resize or a crop\)"):
        predict_collapse(pictures, _two(v1.ToTensor()))


def test_a_step_that_cannot_be_left_out_is_named():
    def flatten(picture):
        return v1.functional.to_tensor(picture).flatten()

    transform = _two(v1.Compose([v1.RandomHorizontalFlip(), flatten]))
    options = {"dataset": _pictures(size=(4, 4)), "transform": transform, "resamples": 2}
    with pytest.raises(ValueError, match=r"but fails without flatten .*leave_one_out=False"):
        predict_collapse(**options)
    assert predict_collapse(**options, leave_one_out=False).n_images == 12


def test_landscape_of_a_prediction_is_that_of_its_covariances():
    prediction = predict_collapse(_gaussian(100, 1, 2), _two(_Noise(1, 1)))
    c = prediction.covariances
    landscape = QuarticLandscape.from_covariances(c.data, c.augmentation)
    torch.testing.assert_close(landscape.whitened_eigenvalues, prediction.signal_fraction)
