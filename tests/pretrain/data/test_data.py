"""Data modules: what they hold, that they split as they say, and their order."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from lightly_collapse.pretrain.data import (
    CIFAR10,
    Digits,
    ImageFolder,
    LightlyFolder,
    SmallImageFolder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six training images of three classes, one plain colour each, and three held-out ones."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 6), ("val", 3)):
        for i in range(count):
            where = root / part / "abc"[i % 3]
            where.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 30), (40 * i, 10, 200)).save(where / f"{i}.png")
    return root


def attach(data, epoch=0, training=True):
    progress = SimpleNamespace(current=SimpleNamespace(processed=epoch, ready=0))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(global_views=2),
        world_size=1,
        global_rank=0,
        training=training,
        fit_loop=SimpleNamespace(
            epoch_progress=progress, epoch_loop=SimpleNamespace(batch_progress=progress)
        ),
    )
    data.setup("fit")
    return data


def test_small_images_keep_pixels_and_labels(folder):
    data = SmallImageFolder(str(folder), image_size=30, batch_size=3)
    attach(data, training=False)
    bank, held_out = data.evaluation_loaders()
    images = torch.cat([images for images, _ in bank])
    labels = torch.cat([labels for _, labels in bank])
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images[:, :, 15, 15].tolist() == [[40 * i, 10, 200] for i in (0, 3, 1, 4, 2, 5)]
    assert (data.num_classes, data.train_count, len(held_out.dataset)) == (3, 6, 3)
    colours, _ = data.on_after_batch_transfer((images, labels), 0)
    back = (
        colours * torch.tensor(data.normalization.std)[:, None, None]
        + torch.tensor(data.normalization.mean)[:, None, None]
    )
    torch.testing.assert_close(back, images.float() / 255)


@pytest.mark.parametrize(
    "make",
    [
        lambda root: SmallImageFolder(root, batch_size=2),
        lambda root: ImageFolder(root, image_size=24, batch_size=2),
        lambda root: LightlyFolder(f"{root}/train", image_size=24, batch_size=2),
    ],
    ids=["SmallImageFolder", "ImageFolder", "LightlyFolder"],
)
def test_training_batches_are_views_with_labels(folder, make):
    data = attach(make(str(folder)))
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert len(batches) == 3
    for views, labels in batches:
        assert len(views) == 2
        assert views[0].shape == views[1].shape
        assert views[0].shape[:2] == (2, 3)
        assert labels.shape == (2,)
        assert not torch.equal(*views)
    data.trainer.training = False
    for loader in data.val_dataloader():
        images, labels = data.on_after_batch_transfer(next(iter(loader)), 0)
        assert images.shape[1] == 3
        assert len(images) == len(labels)


def test_the_order_follows_from_seed_and_epoch(folder):
    def order(seed, epoch):
        data = Digits(batch_size=100)
        data.seed = seed
        attach(data, epoch)
        return torch.cat([labels for _, labels in data.train_dataloader()]).tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(*words)) for words in ((0, 3), (0, 4), (1, 3))}) == 3


def test_the_random_numbers_of_a_step_follow_from_seed_epoch_batch_and_process():
    def draw(seed=0, epoch=0, batch=0, rank=0):
        data = attach(Digits(), epoch)
        data.seed = seed
        data.trainer.fit_loop.epoch_loop.batch_progress.current.ready = batch
        data.trainer.fit_loop.epoch_progress.current.processed = epoch
        data.trainer.global_rank = rank
        data.on_before_batch_transfer(None, 0)
        return float(torch.rand(())), np.random.random(), epoch  # noqa: NPY002

    assert draw() == draw()
    words = ({}, {"seed": 1}, {"rank": 1}, {"seed": 1, "rank": 1})
    assert len({draw(**w)[0] for w in words}) == 4


def test_the_chosen_training_images_are_the_same_for_every_seed(folder):
    chosen = []
    for seed in (0, 1):
        data = Digits(train_images=100)
        data.seed = seed
        chosen.append(attach(data)._train.images)
    assert torch.equal(*chosen)
    assert chosen[0].shape == (100, 3, 16, 16)


def test_cifar_is_read_as_torchvision_stores_it(tmp_path, monkeypatch):
    def fake(self, root, train=True, download=False):
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(256, size=(20 if train else 10, 32, 32, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(len(self.data))]

    monkeypatch.setattr(datasets.CIFAR10, "__init__", fake)
    data = attach(CIFAR10(str(tmp_path), train_images=15))
    assert data._train.images.shape == (15, 3, 32, 32)
    pixels = np.random.default_rng(0).integers(256, size=(10, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(data._held_out.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert data.num_classes == 10


@pytest.mark.parametrize("name", ["batch_size", "train_images", "bank_images"])
def test_numbers_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"data.{name} must be at least 1, got 0"):
        Digits(**{name: 0})


def test_folders_whose_classes_differ_are_refused(folder, tmp_path):
    (tmp_path / "train").symlink_to(folder / "train")
    (tmp_path / "val/other").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val/other/0.png")
    with pytest.raises(ValueError, match="same classes, got 3 and 1"):
        SmallImageFolder(str(tmp_path)).setup("fit")


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a/broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png"):
        SmallImageFolder(str(tmp_path)).setup("fit")


def test_a_list_chooses_among_photographs(tmp_path):
    (tmp_path / "images").mkdir()
    for i, ending in enumerate(("jpg", "png", "JPG", "png")):
        Image.new("RGB", (20, 30)).save(tmp_path / "images" / f"{i}.{ending}")
    names = tmp_path / "train.txt"
    names.write_text("\ufeff2\n1.png\n\n0\n")
    data = attach(LightlyFolder(str(tmp_path / "images"), names=str(names), image_size=16))
    assert data.train_count == 3
    assert sorted(data._plain.get_filenames()) == ["0.jpg", "1.png", "2.JPG"]
    names.write_text("0\n7\n8\n")
    with pytest.raises(ValueError, match=r"2 of 3 names have no image in .*images, the first is 7"):
        attach(LightlyFolder(str(tmp_path / "images"), names=str(names)))
    with pytest.raises(ValueError, match="must be a text file of names"):
        attach(LightlyFolder(str(tmp_path / "images"), names=str(tmp_path / "no.txt")))
