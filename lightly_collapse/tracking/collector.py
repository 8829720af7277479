"""Rows of named layers, collected while a window is open and then measured."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics import FeatureHooks, LayerMetrics, Reading
from lightly_collapse.metrics.channels import Channels
from lightly_collapse.metrics.features import Tokens, find_layers, silent_layers
from lightly_collapse.tracking.calls import CallRecorder


@dataclass(frozen=True)
class LayerReading:
    """What was measured of a layer.

    Attributes:
        reading: the metrics.
        dimensions: its number of channels.
    """

    reading: Reading
    dimensions: int

    def scalars(self) -> dict[str, float]:
        """The metrics by name, with `dimensions`."""
        return self.reading.scalars | {"dimensions": float(self.dimensions)}


class LayerCollector:
    """Hooks on named layers and their metrics.

    Nothing that goes wrong with an output ends the forward pass: it is warned of, once a layer.
    Forward passes that activation checkpointing computes again within the backward pass are not
    counted. No random number is drawn and no tensor of the model changed.

    Args:
        model: the model; `DistributedDataParallel` around it is looked through.
        layers: names as in `named_modules()`.
        tokens: as `lightly_collapse.metrics.FeatureHooks`.
        channels: as `lightly_collapse.metrics.FeatureHooks`.
        prefix: as `lightly_collapse.metrics.FeatureHooks`.
        rtol: a dimension counts as collapsed below this times the largest singular value.
        lid_k: number of neighbours of the local intrinsic dimensionality.
        lid_size: number of rows sampled at most for neighbours and pairs.
        max_rows: number of rows after which a process takes no further ones of a layer.
        training_only: take no rows while the model is in evaluation mode.

    Raises:
        ValueError: if an argument is out of range or a layer does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        tokens: Tokens = "auto",
        channels: Channels = "auto",
        prefix: int | None = None,
        rtol: float = DEFAULT_RTOL,
        lid_k: int = DEFAULT_LID_K,
        lid_size: int = 2000,
        max_rows: int | None = None,
        training_only: bool = False,
    ) -> None:
        model = unwrapped(model)
        self.layers = tuple(dict.fromkeys(layers))
        self.active = False
        self._model = model
        self._settings = (rtol, lid_k, lid_size)
        self._max_rows = max_rows
        self._training_only = training_only
        self._metrics: dict[str, LayerMetrics] = {}
        self._widths: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._evaluated = False
        self._warned: set[str] = set()
        self._hooks = FeatureHooks(
            model, self.layers, self._take, tokens, channels, prefix, self._wants, self._refuse
        )
        self._calls: CallRecorder | None = CallRecorder(find_layers(model, self.layers), self._in)

    def _wants(self) -> bool:
        if not self.active:
            return False
        if self._training_only and not self._model.training:
            self._evaluated = True
            return False
        return self._in()

    @staticmethod
    def _in() -> bool:
        """Whether this is a forward pass of its own, not one repeated within the backward pass."""
        return torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1

    def _refuse(self, layer: str, error: Exception) -> None:
        self.warn(f"refused {layer}", f"{layer} cannot be measured: {error}")

    def _take(self, layer: str, rows: Tensor) -> None:
        taken = self._taken.get(layer, 0)
        if self._max_rows is not None:
            rows = rows[: max(0, self._max_rows - taken)]
        if not rows.shape[0]:
            return
        metrics = self._of(layer)
        try:
            metrics.update(rows)
        except (ValueError, RuntimeError) as error:  # of another width; out of memory
            self._refuse(layer, error)
            return
        self._taken[layer] = taken + rows.shape[0]
        self._widths[layer] = rows.shape[1]

    def _of(self, layer: str) -> LayerMetrics:
        if layer not in self._metrics:
            self._metrics[layer] = LayerMetrics(*self._settings)
        return self._metrics[layer]

    def flush(self) -> None:
        """Take in what layers of compiled modules gave; to be called once a step."""
        self._hooks.flush()

    def reset(self) -> None:
        """Forget all rows."""
        self._hooks.discard()
        self._taken.clear()
        for metrics in self._metrics.values():
            metrics.reset()

    def compute(self) -> dict[str, LayerReading]:
        """Measure the rows of all processes; to be called on each of them.

        Returns:
            By layer, `<layer>.cls` and `<layer>.patch` where tokens were told apart. A layer of
            which there was no row is left out, with a warning that says why.
        """
        self.flush()
        found = {}
        widths = _of_all_processes(self._widths)
        for name, width in widths.items():
            reading = self._of(name).compute()
            if reading.scalars["rows"] or reading.scalars["dropped"]:
                found[name] = LayerReading(reading, width)
                self._warn_of(name, reading)
        for layer in silent_layers(self.layers, found):
            self._explain(layer)
        if self._calls is not None:
            self._calls.remove()
            self._calls = None
        return found

    def _warn_of(self, layer: str, reading: Reading) -> None:
        for reason in dict.fromkeys(reading.problems.values()):
            names = ", ".join(name for name, other in reading.problems.items() if other == reason)
            self.warn(f"{layer}: {names}", f"{layer}: {names} cannot be computed: {reason}")

    def _explain(self, layer: str) -> None:
        if any(key == f"refused {layer}" for key in self._warned):
            return
        if self._evaluated:
            message = f"{layer} was called in evaluation mode only; rows are those of training"
        elif self._calls is not None:
            message = self._calls.explain(layer)
        else:
            message = f"forward of {layer} was not called since the last reading"
        self.warn(f"silent {layer}", message)

    def warn(self, key: str, message: str | Warning) -> None:
        """Warn once of each `key`, on the first process."""
        if key not in self._warned:
            self._warned.add(key)
            if not _distributed() or dist.get_rank() == 0:
                warnings.warn(message, stacklevel=3)

    def remove(self) -> None:
        """Remove all hooks."""
        self.active = False
        self._hooks.remove()
        if self._calls is not None:
            self._calls.remove()
            self._calls = None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within `DistributedDataParallel`."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all_processes(widths: dict[str, int]) -> dict[str, int]:
    """The union, in the same order on every process, so that all compute the same metrics."""
    if not _distributed():
        return dict(widths)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, widths)
    return {name: width for part in parts for name, width in part.items()}
