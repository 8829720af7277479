"""All runs of the bench over worker processes."""

import multiprocessing
import os
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from tests.benchmarks.collapse_bench.data import prepare_cifar10
from tests.benchmarks.collapse_bench.drawn import drawn_runs
from tests.benchmarks.collapse_bench.eight_methods import eight_methods_runs
from tests.benchmarks.collapse_bench.five_methods import five_methods_runs
from tests.benchmarks.collapse_bench.runs import Run, first_runs
from tests.benchmarks.collapse_bench.train import quiet, train


def run_all(
    output: Path, cifar10: Path | None, workers: int, part: str | None = None, only: str = ""
) -> None:
    """Train every run that is not finished; one that fails is named and does not end the bench.

    Args:
        output: folder of the bench, with a folder for every run.
        cifar10: folder that holds CIFAR-10 as images; None to leave its runs out, unless an
            earlier command has read it.
        workers: number of processes.
        part: `development` or `unseen`; both by default.
        only: text that the names of the runs hold.

    Raises:
        ValueError: if no run is left, or the folder does not hold CIFAR-10.
        OSError: if something cannot be read or written.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    images = output / "cifar10.pt"
    if cifar10 is not None:
        prepare_cifar10(cifar10, images)
    every = [*first_runs(), *eight_methods_runs(), *five_methods_runs(), *drawn_runs()]
    runs = [r for r in every if part in (None, r.part) and only in r.name]
    if not images.exists():
        runs = [r for r in runs if r.data != "cifar10"]
    if not runs:
        raise ValueError(f"no run's name holds {only!r}")
    missing = [r for r in runs if not (output / r.name / "run.json").exists()]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished", flush=True)
    began = time.monotonic()
    # A process that was forked after torch had started its threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start) as pool:
        jobs = {pool.submit(_one, run, output, str(images)): run for run in missing}
        for i, job in enumerate(as_completed(jobs)):
            error = job.exception()
            said = job.result() if error is None else f"{type(error).__name__}: {error}"
            minutes = (time.monotonic() - began) / 60
            print(
                f"[{i + 1}/{len(missing)}, {minutes:.1f} min] {jobs[job].name}: {said}", flush=True
            )


def _start() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    quiet()


def _one(run: Run, output: Path, cifar10: str) -> str:
    began = time.perf_counter()
    try:
        train(run, output / run.name, cifar10)
    except Exception:
        return f"failed: {traceback.format_exc(limit=-3)}"
    return f"{time.perf_counter() - began:.0f} s"
