"""A model measured on images by the workers of a Ray cluster; their states are merged."""

from collections.abc import Iterable, Sized
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lightly_collapse.io.cluster import actor_results, connect
from lightly_collapse.io.image_batches import ImageFolderLoader, part_of
from lightly_collapse.report.feature_pass import EmptyDataError
from lightly_collapse.report.model_pass import ModelPass
from lightly_collapse.report.model_totals import ModelTotals
from lightly_collapse.report.progress import batch_progress

_PIECES = 4  # a worker


def measured_on_cluster(
    job: ModelPass,
    loader: Iterable[Any],
    device: torch.device | str | None,
    address: str | None,
    progress: bool,
) -> ModelTotals:
    """Pass the images through copies of the model on the workers of a cluster.

    Every worker gets runs of whole batches, those of one process, so that the features are the
    same; it returns a state of bounded size. A run whose worker died is passed again, and its first
    attempt leaves nothing behind.

    Args:
        job: what is measured.
        loader: that of a folder or of the digits, or any DataLoader that does not shuffle. The
            workers read the files themselves.
        device: `cpu`, or `cuda` for a GPU each; by default a GPU where the cluster has any.
        address: of the cluster; by default the running one or a new one on this machine.
        progress: show a progress bar on standard error.

    Returns:
        The totals of all images; unreadable files are entered into the loader's list.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at the address.
        ValueError: as `measure`, or if the loader cannot be cut or the device is another.
        OSError: if the workers die again and again, or a file cannot be read.
    """
    if device is not None and str(device) not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda with engine ray, got {device}")
    part_of(loader, 0, 1)  # raises where it cannot be cut
    count = len(loader) if isinstance(loader, Sized) else 0
    ray = connect(address)
    found = ray.cluster_resources()
    gpus = 0 if str(device) == "cpu" else int(found.get("GPU", 0))
    if str(device) == "cuda" and not gpus:
        raise ValueError("device cuda: no node of the Ray cluster has a GPU")
    workers = max(1, min(gpus or int(found.get("CPU", 1)), count))
    pieces = min(count, _PIECES * workers)
    cuts = [i * count // pieces for i in range(pieces + 1)] if pieces else [0]
    sent = ray.put(replace(job, model=_on_cpu(job.model), reference=_on_cpu(job.reference)))
    totals, unreadable = job.totals(), dict[int, list[str]]()
    bar, shown = batch_progress(progress, count)
    with bar:
        for (first, stop), (state, failures) in actor_results(
            ray,
            _Worker,
            (sent, ray.put(loader), "cuda" if gpus else "cpu"),
            pairwise(cuts),
            actors=workers,
            resources={"num_cpus": 1, "num_gpus": 1 if gpus else 0},
        ):
            totals.merge(state)
            unreadable[first] = failures
            bar.advance(shown, stop - first)
    if isinstance(loader, ImageFolderLoader):
        loader.unreadable = [reason for first in sorted(unreadable) for reason in unreadable[first]]
    if not totals.sketches:
        raise EmptyDataError("dataloader must give at least one batch, got none")
    return totals


class _Worker:
    """A process that holds the model; nothing of one call is left for the next."""

    def __init__(self, job: ModelPass, loader: Any, device: str) -> None:
        self._job, self._loader, self._device = job, loader, torch.device(device)

    def call(self, first: int, stop: int) -> tuple[ModelTotals, list[str]]:
        """Measure the batches from `first` to before `stop`."""
        part, number = part_of(self._loader, first, stop)
        try:
            totals, _ = self._job.over(part, self._device, first=number)
        except EmptyDataError:  # no image of these can be read
            totals = self._job.totals()
        return totals, list(getattr(part, "unreadable", []))


def _on_cpu(model: Any) -> Any:
    if not isinstance(model, nn.Module) or all(p.device.type == "cpu" for p in model.parameters()):
        return model
    return deepcopy(model).cpu()
