"""Every wrong command line is answered by one line and exit status 2, and writes nothing."""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightly_collapse import cli
from tests.faults.places import make_places, read_only

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HEAVY = ("torch", "numpy", "lightly", "torchvision", "sklearn", "matplotlib", "pytorch_lightning")
LINE_LIMIT = 700  # characters
WITHOUT_OUTPUT = ("export", "detection", "nonsense")


def read_lines(name: str) -> list[tuple[str, str]]:
    """Words and expected text of every line of a table."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    rows = [line.partition(" | ") for line in lines if line.strip() and not line.startswith("#")]
    return [(words, said) for words, _, said in rows]


EARLY, LATE = read_lines("early_lines.txt"), read_lines("late_lines.txt")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    found = make_places(folder)
    with read_only(folder / "readonly"):
        yield found


def split(line: str, places: dict[str, str]) -> list[str]:
    """The words of a line, those with an output folder of their own given a new one."""
    for name, path in places.items():
        line = line.replace(f"{{{name}}}", path)
    words = shlex.split(line)
    has_option = words and words[0] in cli.VERBS and words[0] != "export"
    if has_option and "--output" not in words:
        words += ["--output", f"{places['new']}/out"]
    return words


def check(words: list[str], status: object, out: str, error: str, said: str) -> None:
    assert status == 2, error
    assert out == ""
    assert error.count("\n") == 1, error
    assert error.endswith("\n")
    assert said in error
    assert "unexpected" not in error
    assert "Traceback" not in error
    assert len(error) < LINE_LIMIT


# All early lines in one process that has nothing heavy, with the seconds of processor time of each.
PROGRAM = f"""
import contextlib, io, json, sys, time
from lightly_collapse import cli

found = []
for words in json.load(sys.stdin):
    out, error = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main(words)
    seconds = time.process_time() - began
    heavy = [name for name in {HEAVY} if name in sys.modules]
    found.append((status, out.getvalue(), error.getvalue(), seconds, heavy))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(places):
    words = [split(line, places) for line, _ in EARLY]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=ROOT,
    )
    return dict(zip((line for line, _ in EARLY), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("line", "said"), EARLY)
def test_answered_before_anything_heavy_is_imported(line, said, answers, places):
    status, out, error, seconds, heavy = answers[line]
    check(split(line, places), status, out, error, said.replace("{missing}", places["missing"]))
    assert heavy == []
    assert seconds < 1
    assert not list(Path(places["new"]).iterdir())


@pytest.mark.parametrize(("line", "said"), LATE)
@pytest.mark.filterwarnings("ignore")
def test_one_line_whatever_is_wrong(line, said, places, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = split(line, places)
    try:
        if words[0].startswith("detection."):
            pytest.importorskip("pycocotools", reason="detection counts with pycocotools")
            status = importlib.import_module(words[0]).main(words[1:])
        else:
            status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    out, error = capsys.readouterr()
    check(words, status, out, error, said)


def test_no_line_is_there_twice():
    lines = [line for line, _ in (*EARLY, *LATE)]
    assert len(set(lines)) == len(lines)
    assert len(lines) > 380


def test_after_a_wrong_setting_the_right_one_is_not_refused(places, tmp_path, capsys):
    words = ["sweep", places["sweep"], "--output", str(tmp_path)]
    assert cli.main([*words, "--set", "data.nosuch=3"]) == 2
    assert "nosuch" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/cell.yaml"))
