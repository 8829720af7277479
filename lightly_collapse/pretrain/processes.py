"""A training of several processes, started from within a program that goes on after it.

Lightning starts the other processes of a training with the command line of the first. Within a
sweep each of them would begin the whole sweep: there the training gets a program of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.locks import keep_held, lock_descriptors
from lightly_collapse.pretrain.command import pretrain, quiet
from lightly_collapse.pretrain.methods.base import DivergedError

_SECONDS = 5
_INTERRUPTED = 130
# What a process can report, the most telling first.
_ERRORS: tuple[type[Exception], ...] = (DivergedError, ValueError, OSError, MemoryError)


def count_processes(settings: Mapping[str, Any]) -> int:
    """The number of processes that a training takes on this machine.

    Args:
        settings: `trainer` of a configuration.

    Returns:
        At least 1; 1 too where the settings are at fault, which the training will say.

    Examples:
        >>> count_processes({"accelerator": "cpu", "devices": 2})
        2
    """
    names = ("accelerator", "devices", "num_nodes", "strategy")
    chosen = {n: settings[n] for n in names if settings.get(n) is not None}
    if str(chosen.get("devices")) == "1" and chosen.get("num_nodes", 1) == 1:
        return 1
    if not isinstance(chosen.get("strategy", ""), str):
        del chosen["strategy"]
    try:
        with quiet():
            trainer = Trainer(logger=False, enable_checkpointing=False, **chosen)
    except (MisconfigurationException, ValueError, TypeError):
        return 1
    return int(trainer.world_size)


def pretrain_apart(config: Mapping[str, Any]) -> None:
    """Pretrain in a program of its own, which may start further processes.

    A folder that this process holds stays held until that program has ended too.

    Args:
        config: as `pretrain` takes it, with `output`.

    Raises:
        DivergedError: if the loss of a process was no longer finite.
        ValueError, OSError, MemoryError: as `pretrain`, of the process that had the first cause.
        RuntimeError: if a process ended in another way.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", __name__, scratch],
            check=False,
            pass_fds=lock_descriptors(config["output"]),
        )
        if done.returncode:
            error, trace = _first_cause(place, done.returncode)
            raise error from _ProcessError(trace)


class _ProcessError(Exception):
    """The traceback of another process, which `--debug` prints."""


def _first_cause(folder: Path, status: int) -> tuple[Exception, str]:
    """The most telling of what the processes report, which the first can precede by a moment."""
    limit = time.monotonic() + _SECONDS
    while True:
        reports = [json.loads(p.read_text()) for p in sorted(folder.glob("error-*.json"))]
        for kind in _ERRORS:
            for name, message, trace in reports:
                if name == kind.__name__:
                    return kind(message), trace
        if time.monotonic() > limit or status == _INTERRUPTED:
            break
        time.sleep(0.1)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    told = "; ".join(f"{name}: {message}" for name, message, _ in reports)
    trace = "\n".join(trace for *_, trace in reports)
    return RuntimeError(told or f"the training's first process ended with status {status}"), trace


def _kind(error: Exception) -> str:
    return next((k.__name__ for k in _ERRORS if isinstance(error, k)), type(error).__name__)


def main(words: Sequence[str]) -> int:
    """Pretrain as a folder's `config.json` says; what fails is written beside it.

    Args:
        words: the folder.

    Returns:
        The exit status.
    """
    folder = Path(words[0])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    keep_held(config["output"])
    try:
        pretrain(config)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # reported by the program that waits
        rank = os.environ.get("LOCAL_RANK", "0")
        report = json.dumps([_kind(error), str(error), traceback.format_exc()])
        with suppress(OSError):  # nobody waits any more
            atomic_write(folder / f"error-{rank}.json", report.encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
