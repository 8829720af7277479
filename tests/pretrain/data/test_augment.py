"""Batched views against torchvision, image by image."""

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from lightly_collapse.pretrain.data import augment
from lightly_collapse.pretrain.data.augment import DeviceViews, ViewSettings, worker_views

STILL = {"flip": 0.0, "jitter": 0.0, "gray": 0.0, "blur": (0.0, 0.0)}


@pytest.fixture
def images():
    return torch.rand(6, 3, 24, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (augment.scale_brightness, transforms.adjust_brightness, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (augment.scale_contrast, transforms.adjust_contrast, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (augment.scale_saturation, transforms.adjust_saturation, [0.2, 0.7, 1.0, 1.3, 1.8, 0.0]),
        (augment.shift_hue, transforms.adjust_hue, [-0.5, -0.2, -0.05, 0.0, 0.1, 0.4]),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_every_image_gets_its_own_change_of_colour(images, ours, theirs, values):
    images[0, :, :4] = 0.5  # grey has no hue
    images[1, :, :4] = 0.0
    expected = torch.stack([theirs(x, v) for x, v in zip(images, values, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(values)), expected, atol=2e-5, rtol=0)


def test_grayscale_is_torchvisions(images):
    expected = transforms.rgb_to_grayscale(images)
    torch.testing.assert_close(augment.grayscale(images), expected, atol=1e-4, rtol=0)


def test_blur_is_torchvisions(images):
    sigmas = [0.1, 0.5, 1.0, 1.5, 1.9, 2.0]
    expected = torch.stack(
        [transforms.gaussian_blur(x, [3, 3], [s, s]) for x, s in zip(images, sigmas, strict=True)]
    )
    torch.testing.assert_close(
        augment.blur(images, torch.tensor(sigmas)), expected, atol=1e-5, rtol=0
    )


def test_a_crop_of_whole_pixels_is_torchvisions_resized_crop():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    boxes = [(0, 0, 16, 16), (2, 4, 8, 8), (5, 1, 10, 12)]  # top, left, height, width
    centre = torch.tensor([[(x + w / 2) / 8 - 1, (y + h / 2) / 8 - 1] for y, x, h, w in boxes])
    half = torch.tensor([[w / 16, h / 16] for _, _, h, w in boxes])
    ours = augment.crop_and_flip(images, centre, half, 24)
    for image, view, (y, x, h, w) in zip(images, ours, boxes, strict=True):
        expected = transforms.resized_crop(image, y, x, h, w, [24, 24], antialias=False)
        # At the crop's rim torchvision repeats its last pixel, ours sees the image beyond.
        torch.testing.assert_close(view[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-5, rtol=0)
    mirrored = augment.crop_and_flip(images, centre, half * torch.tensor([-1, 1]), 24)
    torch.testing.assert_close(mirrored, ours.flip(-1), atol=1e-5, rtol=0)


def test_crops_have_the_areas_and_shapes_that_random_resized_crop_draws():
    torch.manual_seed(0)
    centre, half = augment._boxes(20_000, (0.2, 1.0), 0.5, torch.device("cpu"))
    width, height = half[:, 0].abs(), half[:, 1]
    assert (centre.abs() + half.abs() <= 1 + 1e-6).all()
    area = width * height
    assert float(area.min()) >= 0.2 - 1e-4
    assert float(area.max()) <= 1
    ratio = width / height
    assert float(ratio.min()) >= 3 / 4 - 1e-3
    assert float(ratio.max()) <= 4 / 3 + 1e-3
    assert float((half[:, 0] < 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    # Rejection as in torchvision, whose boxes are drawn here for comparison.
    from torchvision.transforms import RandomResizedCrop  # noqa: PLC0415

    blank = torch.empty(1, 1000, 1000)
    theirs = [RandomResizedCrop.get_params(blank, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    mean = sum(h * w for _, _, h, w in theirs) / len(theirs) / 1e6
    assert float(area.mean()) == pytest.approx(mean, abs=0.015)


def test_nothing_asked_for_changes_nothing(images):
    square = images[..., :20, :]
    (a, b) = DeviceViews(ViewSettings(min_scale=1.0, **STILL), 20)(square)
    # A ratio other than 1 does not fit into the whole image, so the whole image is what is left.
    torch.testing.assert_close(a, square, atol=1e-5, rtol=0)
    torch.testing.assert_close(b, square, atol=1e-5, rtol=0)


def test_images_of_a_batch_and_views_of_an_image_differ_and_follow_the_seed():
    same = torch.rand(1, 3, 16, 16).expand(5, -1, -1, -1)
    views = DeviceViews(ViewSettings(solarize=(0.5, 0.5)), 16)
    torch.manual_seed(3)
    first = views(same)
    for view in first:
        assert view.min() >= 0
        assert view.max() <= 1
        assert len({tuple(x.flatten()[:4].tolist()) for x in view}) == 5
    assert not torch.equal(*first)
    torch.manual_seed(3)
    assert all(torch.equal(x, y) for x, y in zip(first, views(same), strict=True))


def test_probabilities_of_one_act_on_every_image(images):
    bright = images[..., :20, :] * 0.4 + 0.6
    settings = ViewSettings(**{**STILL, "gray": 1.0, "min_scale": 1.0}, solarize=(0.0, 1.0))
    plain, solarized = DeviceViews(settings, 20)(bright)
    assert torch.equal(plain[:, 0], plain[:, 1])
    assert torch.equal(plain[:, 0], plain[:, 2])
    torch.testing.assert_close(solarized, 1 - plain, atol=1e-5, rtol=0)


def test_workers_draw_as_many_views_of_the_same_sizes():
    from PIL import Image  # noqa: PLC0415

    settings = ViewSettings(local_crops=2, local_size=12)
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    views = worker_views(settings, 24, zero, one)(Image.new("RGB", (40, 50), (9, 200, 90)))
    assert [tuple(v.shape) for v in views] == [(3, 24, 24)] * 2 + [(3, 12, 12)] * 2
    batch = DeviceViews(settings, 24)(torch.rand(2, 3, 24, 24))
    assert [tuple(v.shape[1:]) for v in batch] == [tuple(v.shape) for v in views]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("min_scale", 0.0),
        ("jitter", 2.0),
        ("flip", 1.5),
        ("blur", (0.1, -0.1)),
        ("local_crops", -1),
        ("local_scale", (0.5, 0.1)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"views.{setting}"):
        ViewSettings(**{setting: value})


def test_no_image_may_be_chosen_for_a_change():
    views = DeviceViews(ViewSettings(gray=1e-9, blur=(1e-9, 1e-9), solarize=(1e-9, 0.0)), 16)
    assert views(torch.rand(2, 3, 16, 16))[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "stronger"),
    [
        ({}, ()),
        ({"min_scale": 0.2, "jitter": 0.5, "blur": (0.0, 0.0)}, ()),
        ({"blur": (1.0, 0.1), "solarize": (0.0, 0.2)}, ()),  # BYOL
        ({"noise": 0.01}, ("noise",)),
        ({"min_scale": 0.05, "noise": 0.1}, ("crop", "noise")),
        ({"gray": 0.5}, ("gray",)),
        ({"jitter": 1.2}, ("colour jitter",)),
        ({"solarize": (0.0, 0.5)}, ("solarize",)),
    ],
)
def test_steps_that_are_stronger_than_published_ones(settings, stronger):
    views = ViewSettings(**settings)
    assert views.stronger_steps == stronger
    assert {*stronger} <= {*views.random_steps()}
