"""The command line without its verbs: those are tested beside what they call."""

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import pytest

from lightly_collapse import __version__, cli

HEAVY = ("torch", "numpy", "lightly", "torchvision", "sklearn", "matplotlib", "pytorch_lightning")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["--version"]], ids=str)
def test_help_answers_without_importing_anything_heavy(arguments: list[str]) -> None:
    done = python(
        "import sys\n"
        "from lightly_collapse.cli import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "finally:\n"
        f"    print('loaded:', [m for m in {HEAVY} if m in sys.modules])\n"
    )
    assert done.returncode == 0
    assert done.stdout.endswith("loaded: []\n")
    assert not done.stderr


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for verb, (summary, _, _) in cli._VERBS.items():
        assert verb in text
        assert summary.split()[0] in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lightly-collapse {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        ([], "verb"),
        (["--nonsense"], ""),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--nonsense"], "--nonsense"),
    ],
    ids=str,
)
def test_wrong_arguments_print_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("lightly-collapse")
    assert said in error
    assert error.count("\n") == 1
    assert error.endswith("\n")


def with_verb(monkeypatch: pytest.MonkeyPatch, run: Callable[[Namespace], None]) -> None:
    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--size", type=int, default=3)

    monkeypatch.setitem(cli._VERBS, "try", ("try something", add_arguments, run))


def test_a_verb_gets_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(monkeypatch, lambda arguments: print(arguments.size))
    assert cli.main(["try", "--size", "5"]) == 0
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("5\n3\n", "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, PermissionError, OSError])
def test_a_fault_of_input_or_output_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Namespace) -> None:
        raise kind("k must be\n  at least 2")

    with_verb(monkeypatch, run)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", "lightly-collapse try: error: k must be at least 2\n")


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Namespace) -> None:
        raise KeyboardInterrupt

    with_verb(monkeypatch, run)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "lightly-collapse try: interrupted\n")


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Namespace) -> None:
        raise TypeError("a mistake in the code")

    with_verb(monkeypatch, run)
    with pytest.raises(TypeError):
        cli.main(["try"])


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightly_collapse.cli", "nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
