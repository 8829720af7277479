import pytest
import torch

from lightly_collapse.pretrain.demo.views import BatchedViews

STILL = {"degrees": 0, "translate": 0, "scale": (1, 1), "shear": 0, "brightness": 0, "noise": 0}


def test_without_augmentation_a_view_is_the_image():
    images = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(BatchedViews(**STILL)(images), images)


def test_seed_decides_the_views_and_two_draws_differ():
    images = torch.rand(5, 1, 16, 16)
    first, again = BatchedViews(seed=1), BatchedViews(seed=1)
    view = first(images)
    assert torch.equal(view, again(images))
    assert not torch.equal(view, first(images))


def test_translation_moves_by_whole_pixels():
    images = torch.rand(1, 1, 16, 16)
    views = BatchedViews(**{**STILL, "translate": 0.25}, seed=0)
    # The same draws that the views make: four unused, then x and y in shares of the image.
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        torch.rand(1, generator=generator)
    x, y = ((torch.rand(1, generator=generator) - 0.5) * 0.5 for _ in range(2))
    rows = torch.arange(16) + 0.5
    inside_x = (rows + 16 * x > 0.5) & (rows + 16 * x < 15.5)
    inside_y = (rows + 16 * y > 0.5) & (rows + 16 * y < 15.5)

    def linear(image, at):  # values of image's last axis between pixel centres
        low = (at - 0.5).floor().long().clamp(0, 14)
        share = at - 0.5 - low
        return image[..., low] * (1 - share) + image[..., low + 1] * share

    expected = linear(linear(images, rows + 16 * x).mT, rows + 16 * y).mT
    inside = inside_y[:, None] & inside_x[None]
    torch.testing.assert_close(views(images)[..., inside], expected[..., inside])


@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_rotation_keeps_a_disc(degrees):
    rows = torch.arange(33) - 16
    disc = ((rows[:, None] ** 2 + rows[None] ** 2) < 100).float()[None, None]
    view = BatchedViews(**{**STILL, "degrees": degrees}, seed=2)(disc)
    assert (view - disc).abs().mean() < 0.02


def test_brightness_and_noise_have_the_asked_for_size():
    images = torch.ones(4000, 1, 4, 4)
    lit = BatchedViews(**{**STILL, "brightness": 0.4})(images)[:, 0, 1, 1]
    assert 0.6 <= lit.min() < 0.62
    assert 1.38 < lit.max() <= 1.4
    noisy = BatchedViews(**{**STILL, "noise": 0.1})(images)
    assert (noisy - 1).std() == pytest.approx(0.1, rel=0.02)
