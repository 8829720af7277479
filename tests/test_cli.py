"""The command line without its verbs: those are tested beside what they call."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

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
    for name, verb in cli.VERBS.items():
        assert name in text
        assert verb.summary.split()[0] in text


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
    assert cli.main(arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("lightly-collapse")
    assert said in error
    assert error.count("\n") == 1
    assert error.endswith("\n")


class Try(cli.Verb):
    """A verb whose function is given."""

    run: Callable[..., Any] = staticmethod(print)

    def load(self) -> Callable[..., object]:
        return type(self).run


def with_verb(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """The verb `try`, with the parameters of digits_split."""
    monkeypatch.setattr(Try, "run", staticmethod(run))
    monkeypatch.setitem(cli.VERBS, "try", Try("lightly_collapse.io.digits", "digits_split"))


def test_a_verb_gets_the_arguments_that_were_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_verb(monkeypatch, lambda **given: print(given))
    assert cli.main(["try", "--size", "5", "--test-share", "0.5"]) == 0
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("{'size': 5, 'test_share': 0.5}\n{}\n", "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, PermissionError, OSError])
def test_a_fault_of_input_or_output_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise kind("k must be\n  at least 2")

    with_verb(monkeypatch, run)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", "lightly-collapse try: error: k must be at least 2\n")


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise KeyboardInterrupt

    with_verb(monkeypatch, run)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr() == ("", "lightly-collapse try: interrupted\n")


@pytest.mark.parametrize("place", [0, 1])
def test_a_fault_of_the_program_asks_for_a_report_and_debug_shows_where(
    place: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise TypeError("a mistake in the code")

    with_verb(monkeypatch, run)
    assert cli.main(["try"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unexpected error, TypeError: a mistake in the code" in error
    assert "please report it" in error
    words = ["try"]
    words.insert(place, "--debug")
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "in run" in error


WRONG = [
    (["measure", "--arch", "resnet18", "--data", "/nowhere"], "got /nowhere"),
    (["measure", "--arch", "resnet18", "--data", "digits", "--seed", "-1"], "seed must be between"),
    (["measure", "--arch", "resnet18", "--data", "digits", "--rtol", "2"], "rtol must be between"),
    (["measure", "--checkpoint", "/nowhere.ckpt"], "/nowhere.ckpt does not exist"),
    (["measure", "--arch", "resnet18", "--data", "digits", "--device", "meta"], "device must be"),
    (["measure", "--arch", "resnet18", "--data", "digits", "--output", "/dev/null/x"], "is a file"),
    (["predict", "--data", "digits", "--seed", "100000000000000000000000"], "seed must be between"),
    (["predict", "--data", "digits", "--weight-decay", "nan"], "weight_decay must be"),
    (["compare", "/nowhere.json", "/nowhere.json"], "/nowhere.json does not exist"),
    (["demo", "--seed", "-1"], "seed must be between"),
    (["demo", "--epochs", "0"], "epochs must be between 1 and"),
    (["toy", "landscape", "--seed", "-1"], "seed must be between"),
    (["probe", "--checkpoint", "/nowhere.ckpt"], "does not exist"),
    (["sweep", "/nowhere.yaml"], "does not exist"),
    (["export", "--checkpoint", "/nowhere.ckpt", "--output", "/tmp/a.pkl"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=str)
def test_wrong_values_are_told_before_anything_heavy_is_imported(
    arguments: list[str], said: str
) -> None:
    began = time.monotonic()
    done = python(
        "import sys\n"
        "from lightly_collapse.cli import main\n"
        f"status = main({arguments})\n"
        f"print(status, [m for m in {HEAVY} if m in sys.modules])\n"
    )
    assert done.stdout == "2 []\n"
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 10  # a second on an idle machine; importing torch is longer


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
