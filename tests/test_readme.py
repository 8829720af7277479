"""Every Python block of README and guide, and every example of the gallery, runs by itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


DOCS = README.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=f"{path.name} {number}")
    for path in (README, *sorted(DOCS.glob("**/*.md")))
    for number, block in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "<block>", "exec"), {"__name__": "__block__"})


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
