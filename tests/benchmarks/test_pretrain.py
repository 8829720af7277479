"""What the views and the regularizers cost in a training step; ratios measured in one run."""

import time
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain.data import ImageFolder
from lightly_collapse.pretrain.data.augment import DeviceViews, ViewSettings
from lightly_collapse.pretrain.methods import SimCLR
from lightly_collapse.pretrain.settings import LDReg, Orthogonality

BATCH = 256
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VARIANTS = {
    "SO": ({"orthogonality": Orthogonality("so", 1e-3)}, 0.05),
    "SO, weight auto": ({"orthogonality": Orthogonality("so", "auto")}, 0.05),
    "SRIP": ({"orthogonality": Orthogonality("srip", 1e-2)}, 0.03),
    "LDReg": ({"ldreg": LDReg(0.1, k=64)}, 0.05),
}


def seconds(work):
    """Wall time, on a GPU until its work is done."""
    synchronize = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def training_step(**regularizers):
    torch.manual_seed(0)
    method = SimCLR(
        backbone=BackboneSettings("resnet18", stem="cifar", width=16),
        channels_last=True,
        **regularizers,
    ).to(DEVICE, memory_format=torch.channels_last)
    optimizer = method.optimizer.build(method.trainable_modules(), None, BATCH)
    views = [torch.rand(BATCH, 3, 32, 32, device=DEVICE) for _ in range(2)]
    auto = method.orthogonality is not None and method.orthogonality.weight == "auto"
    if auto:
        method.orthogonality.attach(optimizer)

    def step():
        result = method.step(views)
        loss = result.loss
        if method.orthogonality is not None and not auto:
            loss = loss + method.orthogonality()
        if method.ldreg is not None:
            loss = loss + method.ldreg(*result.features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.benchmark
@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_regularizer_costs_little_of_a_training_step(name):
    regularizers, limit = VARIANTS[name]
    plain, regularized = training_step(), training_step(**regularizers)
    for step in (plain, regularized):
        step()
    # In turns, and the least of each: what else the machine does only ever adds.
    pairs = [(seconds(regularized), seconds(plain)) for _ in range(10)]
    with_it, without = (min(times) for times in zip(*pairs, strict=True))
    share = with_it / without - 1
    print(f"{name}: {100 * share:+.1f} % of a step of {BATCH} images")
    assert share <= limit


@pytest.mark.benchmark
def test_views_are_drawn_faster_than_the_encoder_takes_them():
    step = training_step()
    images = torch.rand(BATCH, 3, 32, 32, device=DEVICE)
    views = DeviceViews(ViewSettings(min_scale=0.2, jitter=0.5, blur=(0.0, 0.0)), 32)
    step()
    views(images)
    drawing = median(seconds(lambda: views(images)) for _ in range(4))
    training = median(seconds(step) for _ in range(4))
    print(
        f"{BATCH / drawing:.0f} images per second as two views without the model, "
        f"{BATCH / (drawing + training):.0f} with it"
    )
    assert drawing < training / 4


@pytest.mark.benchmark
def test_workers_draw_views_faster_than_the_encoder_takes_them(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 256), ("val", 1)):
        folder = tmp_path / part / "photographs"
        folder.mkdir(parents=True)
        for i in range(count):
            noise = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            photograph = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            photograph.save(folder / f"{i}.jpg", quality=90)
    data = ImageFolder(str(tmp_path), batch_size=32, num_workers=2)
    data.setup("fit")
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(views=ViewSettings(), global_views=2),
        world_size=1,
        global_rank=0,
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0))
        ),
    )
    method = SimCLR(backbone=BackboneSettings("resnet18"), channels_last=True)
    method = method.to(DEVICE, memory_format=torch.channels_last)

    def images_a_second(use, batches):
        loader = iter(data.train_dataloader())
        use(next(loader)[0])  # the workers' start does not count
        start = time.perf_counter()
        count = sum(len(use(next(loader)[0])) for _ in range(batches))
        return count / (time.perf_counter() - start)

    def train(views):
        method.step([view.to(DEVICE) for view in views]).loss.backward()
        return views[0]

    alone = images_a_second(lambda views: views[0], 6)
    together = images_a_second(train, 2)
    print(
        f"500 x 375 JPEG, two workers: {alone:.0f} images per second as two views of 224 x 224 "
        f"without the model, {together:.1f} with a ResNet-18"
    )
    if DEVICE.type == "cpu":  # a GPU takes as many workers as it needs
        assert alone >= 2 * together
