"""The commands of README and guide run, in the order of the pages, on small data."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

from lightly_collapse.cli import main
from tests.test_readme import DOCS, README, SHELL

pytestmark = pytest.mark.slow

# What makes each verb short: its settings, not what it does.
SHORT = {
    "pretrain": [
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu"),
        "--model.init_args.optimizer.warmup_epochs=0",
    ],
    "measure": ["--limit", "100"],
    "predict": ["--images", "100"],
    "toy": ["--steps", "50"],
    "probe": [],
    "sweep": ["--seeds", "0", "--set", "trainer.max_epochs=1"],
    "diagnose": ["--limit", "32", "--images", "16"],
    "demo": ["--epochs", "1", "--methods", "baseline"],
    "export": [],
    "compare": [],
    "select": [],
}


def commands(page: Path) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)[1:]
        for block in SHELL.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
        # A cluster is not at hand; tests/report/test_ray.py and tests/pretrain/test_sweep_ray.py
        # run measure and sweep with `--engine ray`.
        if line.startswith("lightly-collapse ") and "--engine ray" not in line
    ]


def write_inputs(folder: Path) -> None:
    """What the pages suppose that a reader has: photographs, a model, embeddings, reports."""
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    (folder / "bccd_voc" / "ImageSets" / "Main").mkdir(parents=True)
    for photographs in (folder / "images", folder / "bccd_voc" / "JPEGImages"):
        photographs.mkdir()
        for i in range(150):
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(photographs / f"{i}.jpg")
    names = "".join(f"{i}\n" for i in range(150))
    (folder / "bccd_voc" / "ImageSets" / "Main" / "train.txt").write_text(names)
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), folder / "model.pth")
    rows = rng.standard_normal((500, 16)).astype(np.float32)
    table = pa.table({"embedding": list(rows), "source": ["a", "b"] * 250})
    (folder / "embeddings").mkdir()
    for path in ("embeddings.parquet", "embeddings/0.parquet"):
        pq.write_table(table, folder / path)
    for name in ("after", "one", "other", "third"):
        words = ["--checkpoint", "run/last.ckpt", "--data", "digits", "--limit", "100"]
        assert main(["measure", *words, "--name", name, "--output", name]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the first training of the guide has run, twice."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for output in ("run", "pretrain-output"):
            words = ["--config", "digits-resnet18-simclr", *SHORT["pretrain"], "--output", output]
            assert main(["pretrain", *words]) == 0
        write_inputs(folder)
    return folder


PAGES = [page for page in (README, *sorted(DOCS.glob("**/*.md"))) if commands(page)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    recipe = re.search(r"```python\n([^`]*\(Method\)[^`]*)```", page.read_text(encoding="utf-8"))
    if recipe:
        (folder / "align_uniform.py").write_text(recipe[1], encoding="utf-8")
    for verb, *words in commands(page):
        short = SHORT[verb]
        if "--embeddings" in words:
            short = []
        elif "--ckpt_path" in words:  # a second epoch
            short = [word.replace("max_epochs=1", "max_epochs=2") for word in short]
        if verb == "pretrain" and "--ckpt_path" not in words:
            # Each page begins anew; `pretrain` refuses a folder that holds a run.
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        if "--trial" in words:
            words[words.index("--trial") + 1] = "2"
        assert main([verb, *words, *short]) == 0, [verb, *words]
