"""The distributions, installed into an environment of their own: README's first commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not run from a checkout"),
]


def run(*words, **settings):
    """Run a program, away from the checkout, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env=environment, **settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from what the sdist holds."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def programs(distributions, tmp_path_factory):
    """The programs of an environment that holds the wheel and its dependencies alone.

    With LIGHTLY_COLLAPSE_INSTALL=1 the dependencies come from the package index; without it they
    are the running environment's, made visible by a path file, and the wheel is new.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if os.environ.get("LIGHTLY_COLLAPSE_INSTALL"):
        run(str(python), "-m", "pip", "install", str(distributions[1]))
    else:
        (purelib,) = (folder / "lib").glob("python*/site-packages")
        shared = [p for p in sys.path if p.endswith("site-packages")]
        (purelib / "shared.pth").write_text("\n".join(shared))
        run(str(python), "-m", "pip", "install", "--no-deps", "--ignore-installed",
            str(distributions[1]))  # fmt: skip
    return folder / "bin"


def test_sdist_holds_what_a_contributor_needs(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/test_wheel.py", "docs/conf.py", "configs/sweep/digits.yaml", "LICENSE",
                 "CONTRIBUTING.md", "detection/README.md",
                 "lightly_collapse/report/pages/vega/LICENSE"):  # fmt: skip
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".git/")]


def test_the_package_that_runs_is_the_wheel(programs, tmp_path):
    where = run(
        str(programs / "python"), "-c", "import lightly_collapse; print(lightly_collapse.__file__)",
        cwd=tmp_path,
    )  # fmt: skip
    assert Path(where.strip()).is_relative_to(programs.parent)


def test_first_commands_of_the_readme_run(programs, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- the first commands -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.splitlines() if line.startswith("lightly-")]
    assert [words[1] for words in commands] == ["demo", "measure"]
    for words in commands:
        # Shorter, for the time's sake: one epoch of the demo, fewer images to measure.
        more = {"demo": ["--epochs", "1", "--methods", "baseline"], "measure": ["--limit", "100"]}
        run(str(programs / words[0]), *words[1:], *more[words[1]], cwd=tmp_path)
    (results,) = tmp_path.glob("collapse-demo/results.json")
    assert json.loads(results.read_text())["results"][0]["spectrum"]
    assert list(tmp_path.glob("*/measure.html"))


def test_recipes_are_found_by_name(programs, tmp_path):
    recipes = run(str(programs / "lightly-collapse"), "pretrain", "--list-configs", cwd=tmp_path)
    assert "digits-resnet18-simclr" in recipes
