"""Every Python block of README and guide, and every example of the gallery, runs by itself."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightly_collapse.cli import _verbs
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.configs import find_config

README = Path(__file__).parent.parent / "README.md"


DOCS = README.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = {
    page: blocks
    for page in (README, *sorted(DOCS.glob("**/*.md")))
    if (blocks := BLOCK.findall(page.read_text(encoding="utf-8")))
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """One after the other, in one namespace, as a reader would paste them."""
    for package in ("lightning", "accelerate", "transformers") if page.stem == "hosts" else ():
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__page__"}
    done = 0
    for block in PAGES[page]:
        exec(compile(block, f"<block {done} of {page.name}>", "exec"), names)
        done += 1
    assert done == len(PAGES[page])


def test_readme_and_guide_have_code():
    assert {"README.md", "regularize.md", "measure.md", "hosts.md"} <= {page.name for page in PAGES}


WRITTEN = [
    *README.parent.glob("*.md"),
    *DOCS.glob("**/*.md"),
    README.parent / "detection/README.md",
]
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


@pytest.mark.parametrize(
    "page",
    [page for page in WRITTEN if not {"api", "auto_gallery"} & set(page.parts)],
    ids=lambda page: str(page.relative_to(README.parent)),
)
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for link in LINK.findall(text):
        path, _, place = link.partition("#")
        if ":" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if place:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert place in anchors, link


SHELL = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = [
    pytest.param(shlex.split(line, comments=True), id=f"{page.name}: {line[:60]}")
    for page in (README, README.parent / "detection" / "README.md", *sorted(DOCS.glob("**/*.md")))
    for block in SHELL.findall(page.read_text(encoding="utf-8"))
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("lightly-collapse ")
]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_have_the_options_they_are_shown_with(words):
    """Every verb, every option and every recipe named in a shell block exists."""
    verbs = _verbs(words[1:])
    assert words[1] in verbs
    verb = verbs[words[1]]
    if verb.words:
        if "--config" in words and not words[words.index("--config") + 1].endswith(".yaml"):
            find_config(words[words.index("--config") + 1], "pretrain")
        return
    known = {verb.options.get(name, name).replace("_", "-") for name in verb.parameters()}
    given = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known


def test_recipe_for_a_method_is_followed(tmp_path, monkeypatch):
    """The class of the recipe in a module of its own, trained by the recipe's command."""
    page = DOCS / "guide" / "inside.md"
    (source,) = (block for block in PAGES[page] if "(Method)" in block)
    (tmp_path / "align_uniform.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = (p.values[0] for p in COMMANDS if "align_uniform.AlignUniform" in p.values[0])
    short = {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "logger": "false"}
    words = [f"--trainer.{name}={value}" for name, value in short.items()]
    trainer = pretrain([*command[2:], *words, "--model.init_args.backbone.width=8"])
    assert type(trainer.lightning_module).__name__ == "AlignUniform"
    assert trainer.global_step == 2
    assert load_model(checkpoint="run/last.ckpt").arch == "resnet18"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DOCS.glob("gallery/plot_*.py")), ids=lambda p: p.stem)
def test_examples_of_the_gallery_run(path, tmp_path):
    subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(README.parent)},
        check=True,
    )


def test_commands_are_those_that_continuous_integration_runs():
    text = README.read_text()
    script = (README.parent / ".ci" / "run").read_text()
    (marker,) = re.findall(r"\^(<!-- .* -->)\$", script)
    command = text[text.index(marker) :].split("```")[1]
    assert command.startswith("bash\n")
    assert command.rstrip().endswith("-m pytest -n 2 --dist loadfile")
