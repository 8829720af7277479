"""Files and folders as they should not be, for wrong command lines."""

import json
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
    make_odd(folder, rows)
    files |= ODD_FILES
    own = "images broken nofiles new link ckpt tensor plain cut missing readonly"
    files |= {name: name for name in own.split()}
    here = torch.cuda.is_available()
    return {name: str(folder / file) for name, file in files.items()} | {
        "long": f"/tmp/{'x' * 5000}",
        "digits": "9" * 1000,
        "detector": "configs/detection/small.yaml",
        "nodevice": "hpu" if here else "cuda",
        "noaccelerator": "hpu" if here else "gpu",
    }


ODD_FILES = {
    "loop": "loop",
    "fifo": "fifo",
    "nonutf8": os.fsdecode(b"\xff.npy"),
    "norows": "norows.npy",
    "nan": "nan.npy",
    "complex": "complex.npy",
    "zip": "folder.npz",
    "parquet": "fake.parquet",
    "tar": "fake.tar",
    "noreport": "none.json",
    "list": "list.json",
    "deep": "deep.json",
    "similarity": "similarity.json",
    "edited": "edited.json",
    "nanreport": "nan.json",
    "selfbase": "self.yaml",
    "lostbase": "lost.yaml",
    "tagged": "tagged.yaml",
    "bomb": "bomb.yaml",
    "older": "older.yaml",
    "brokenclasses": "brokenclasses",
    "oneclass": "oneclass",
}
"""What no one means to give, by name."""

# As written by 0.1.0.
OLDER = """
model: {class_path: SimCLR, init_args: {optimizer: {final_share: 0.0}, views: {flip: 0.5}}}
data: {class_path: Digits}
"""


def make_odd(folder: Path, rows: np.ndarray) -> None:
    """Make the files and folders of `ODD_FILES` beside a report.json."""
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    (folder / ODD_FILES["nonutf8"]).touch()
    (folder / "folder.npz").mkdir()
    arrays = {"norows": rows[:0], "nan": np.full_like(rows, np.nan), "complex": rows + 1j}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    report = json.loads((folder / "report.json").read_text())
    # An alias for nine of the one before, nine times over: short to read, long to walk through.
    bomb = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    texts = {
        "fake.parquet": "no parquet",
        "fake.tar": "no tar",
        "none.json": "",
        "list.json": "[1]",
        "deep.json": "[" * 100_000,
        "similarity.json": '{"format": "lightly-collapse layer similarity 1"}',
        "edited.json": json.dumps(report | {"settings": {"collapse_rtol": "x"}}),
        "nan.json": json.dumps(report | {"accuracy": {"knn": float("nan")}}),
        "self.yaml": "bases: [self.yaml]",
        "lost.yaml": "bases: [nosuch.yaml]",
        "tagged.yaml": "!!python/object/apply:os.system ['echo']",
        "bomb.yaml": "\n".join(bomb),
        "older.yaml": OLDER,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for part in ("train", "val"):
        for kind in ("a", "b"):
            (folder / "brokenclasses" / part / kind).mkdir(parents=True)
            (folder / "brokenclasses" / part / kind / "0.png").write_text("no image")
        (folder / "oneclass" / part / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "oneclass" / part / "a" / "0.png")


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
