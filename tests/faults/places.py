"""Files and folders as they should not be, for wrong command lines."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain.checkpoint import AtomicCheckpointIO
from lightly_collapse.pretrain.methods import SimCLR
from lightly_collapse.report import measure

SWEEP = """
seeds: [0]
settings:
  data: {class_path: Digits, init_args: {batch_size: 32, train_images: 64, bank_images: 64}}
  model: {class_path: SimCLR, init_args: {backbone: {stem: cifar, width: 4}}}
  trainer:
    {max_epochs: 1, accelerator: cpu, devices: 1, logger: false, enable_progress_bar: false,
     enable_model_summary: false}
methods:
  a: {settings: {model: {init_args: {temperature: 0.1}}}}
  b: {settings: {model: {init_args: {temperature: 0.5}}}}
"""


def make_places(folder: Path) -> dict[str, str]:
    """Make them, from their names to their paths."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(4):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "text.png").write_text("no image")
    (folder / "broken" / "empty.jpg").touch()
    for name in ("nofiles", "new"):
        (folder / name).mkdir()
    (folder / "link").symlink_to(folder / "nowhere")
    torch.manual_seed(0)
    method = SimCLR(backbone=BackboneSettings("resnet18", stem="cifar", width=4))
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "ckpt")
    torch.save(torch.zeros(3), folder / "tensor")
    torch.save({"a": 1}, folder / "plain")
    rows = rng.normal(size=(100, 8)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "flat.npy", rows[:, 0])
    measure(rows).save(folder / "report.json")
    (folder / "cut").write_bytes((folder / "ckpt").read_bytes()[:20000])
    (folder / "garbage.pt").write_bytes(rng.bytes(1000))
    (folder / "empty.pt").touch()
    (folder / "file.txt").write_text("text")
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "broken.yaml").write_text("a: [\n")
    files = {
        "npy": "rows.npy",
        "flat": "flat.npy",
        "report": "report.json",
        "garbage": "garbage.pt",
        "empty": "empty.pt",
        "file": "file.txt",
        "sweep": "sweep.yaml",
        "listyaml": "list.yaml",
        "brokenyaml": "broken.yaml",
    }
    own = "images broken nofiles new link ckpt tensor plain cut missing readonly"
    files |= {name: name for name in own.split()}
    here = torch.cuda.is_available()
    return {name: str(folder / file) for name, file in files.items()} | {
        "detector": "configs/detection/small.yaml",
        "nodevice": "hpu" if here else "cuda",
        "noaccelerator": "hpu" if here else "gpu",
    }


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which no file can be made, by root neither."""
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root writes anywhere, and may not mount a read-only file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
