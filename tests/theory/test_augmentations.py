import pytest
import torch
from lightly.transforms import BYOLTransform, DINOTransform, SimCLRTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from lightly_collapse.theory.augmentations import augmentation_names, without_augmentation


def _image() -> Image.Image:
    return Image.new("RGB", (40, 32), (200, 60, 20))


def test_every_step_of_simclr_can_be_left_out_in_both_views():
    transform = SimCLRTransform(input_size=16, vf_prob=0.5, rr_prob=0.5)
    names = augmentation_names(transform)
    # In the order of the transform, which Lightly has changed between releases.
    assert set(names) == {
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "RandomRotate",
        "ColorJitter",
        "RandomGrayscale",
        "GaussianBlur",
    }
    assert len(names) == 7
    for name in names:
        calmer = without_augmentation(transform, name)
        assert augmentation_names(calmer) == [other for other in names if other != name]
        assert [view.shape for view in calmer(_image())] == [(3, 16, 16)] * 2
    assert augmentation_names(transform) == names  # left as it was


def test_without_all_of_them_nothing_is_random():
    transform = SimCLRTransform(input_size=16)
    for name in augmentation_names(transform):
        transform = without_augmentation(transform, name)
    first, second = transform(_image())
    assert torch.equal(first, second)


def test_views_of_different_steps_and_sizes():
    assert "RandomSolarization" in augmentation_names(BYOLTransform())
    transform = DINOTransform(global_crop_size=32, local_crop_size=16, n_local_views=2)
    calmer = without_augmentation(transform, "RandomResizedCrop")
    assert "RandomResizedCrop" not in augmentation_names(calmer)
    assert {tuple(view.shape[1:]) for view in calmer(_image())} == {(32, 32), (16, 16)}


@pytest.mark.parametrize("module", [v1, v2])
def test_torchvision_of_either_version(module):
    view = module.Compose(
        [
            module.Compose([module.RandomCrop(24), module.RandomHorizontalFlip()]),
            module.RandomApply([module.ColorJitter(0.1), module.GaussianBlur(3)], p=0.5),
            module.RandomHorizontalFlip(p=1.0),
            module.RandomVerticalFlip(p=0),
            v1.ToTensor(),
        ]
    )
    transform = MultiViewTransform([view, view])
    names = ["RandomCrop", "RandomHorizontalFlip", "ColorJitter + GaussianBlur",
             "RandomHorizontalFlip (2)"]  # fmt: skip
    assert augmentation_names(transform) == names
    for name in names:
        assert (
            name not in augmentation_names(without_augmentation(transform, name)) or "Flip" in name
        )
    calmer = without_augmentation(transform, "RandomCrop")
    assert calmer(_image())[0].shape == (3, 24, 24)
    second = without_augmentation(transform, "RandomHorizontalFlip (2)")
    assert augmentation_names(second) == names[:3]


def test_functions_lambdas_and_sequential_modules():
    def noise(x):
        return x + torch.randn_like(x)

    steps = v1.Compose((v1.Lambda(noise), noise, nn.Sequential(v2.RandomErasing(), nn.Identity())))
    transform = MultiViewTransform([steps, steps])
    assert augmentation_names(transform) == ["noise", "noise (2)", "RandomErasing"]
    calmer = transform
    for name in ("noise", "noise", "RandomErasing"):
        calmer = without_augmentation(calmer, name)
    x = torch.randn(3, 4, 4)
    assert torch.equal(calmer(x)[0], x)


def test_what_cannot_be_taken_apart_has_no_names():
    assert augmentation_names(lambda x: [x, x]) == []
    with pytest.raises(ValueError, match=r"name must be one of \[\], the steps found, got 'Crop'"):
        without_augmentation(lambda x: [x, x], "Crop")
