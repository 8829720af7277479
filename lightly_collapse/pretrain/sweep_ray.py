"""The cells of a sweep as tasks of a Ray cluster."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightly_collapse.io.cluster import connect, remote_results


def run_on_cluster(
    run: Callable[[Any, Path, Mapping[str, Any]], None],
    cells: Sequence[Any],
    folder: Path,
    settings: Mapping[str, Any],
    minutes: float | None = None,
    address: str | None = None,
) -> None:
    """Run the cells of a sweep on a Ray cluster, as many at a time as it has room for.

    A cell whose worker died is run again and resumes from its last checkpoint, as a sweep does that
    is started again.

    Args:
        run: runs one cell in its folder.
        cells: those that are to be run. One without a share of GPUs gets one where the cluster has
            any; without one of CPUs, one.
        folder: of the sweep, on storage that every node sees.
        settings: laid over every cell's configuration.
        minutes: start no further cell after so many.
        address: of the cluster; by default the running one or a new one on this machine.

    Raises:
        ValueError: if Ray is not installed; that of a cell.
        OSError: if there is no cluster at the address; that of a cell.
    """
    try:
        ray = connect(address)
    except ImportError as error:
        raise ValueError(str(error)) from error
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0

    def resources(cell: Any, *_: Any) -> dict[str, float]:
        shares = cell.resources
        return {"num_cpus": shares.get("cpus", 1), "num_gpus": shares.get("gpus", gpus)}

    _say_what_does_not_fit(ray, [resources(cell) for cell in cells])
    deadline = None if minutes is None else time.time() + 60 * minutes
    shared, places = ray.put(run), (str(folder.absolute()), str(Path.cwd()))
    calls = ((cell, *places, settings, shared, deadline) for cell in cells)
    for i, (call, started) in enumerate(
        remote_results(ray, _run_cell, calls, resources=resources), start=1
    ):
        cell = call[0]
        what = "finished" if started else "not started, the time is over"
        print(f"[{i}/{len(cells)}] {cell.variant}, seed {cell.seed}: {what}", flush=True)


def _run_cell(
    cell: Any,
    folder: str,
    cwd: str,
    settings: Mapping[str, Any],
    run: Callable[[Any, Path, Mapping[str, Any]], None],
    deadline: float | None,
) -> bool:
    """Whether the cell was run: not after the deadline."""
    if deadline is not None and time.time() > deadline:
        return False
    if Path(cwd).is_dir():  # relative paths of images are meant from there
        os.chdir(cwd)
    if not Path(folder, cell.folder, "cell.yaml").is_file():
        raise ValueError(
            f"output must be a folder that every node of the cluster sees, got {folder}, which "
            f"{os.uname().nodename} does not"
        )
    run(cell, Path(folder, cell.folder), settings)
    return True


def _say_what_does_not_fit(ray: Any, wanted: Sequence[Mapping[str, float]]) -> None:
    """Ray waits without end for a node that is large enough; a cluster that grows may get one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for shares in {tuple(sorted(w.items())) for w in wanted}:
        cpus, gpus = dict(shares)["num_cpus"], dict(shares)["num_gpus"]
        if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
            print(f"No node has {cpus:g} CPUs and {gpus:g} GPUs: waiting for one", flush=True)
