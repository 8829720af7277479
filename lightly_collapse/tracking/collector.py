"""Rows of named layers, collected while a window is open and then measured."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.metrics import FeatureHooks, LayerMetrics, Reading
from lightly_collapse.metrics.channels import Channels
from lightly_collapse.metrics.dense import means
from lightly_collapse.metrics.dense_collector import DenseCollector
from lightly_collapse.metrics.feature_hooks import find_layers, silent_layers
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.tracking.calls import CallRecorder

_NO_DRIFT = (
    "the forward of the module that the reference stands for was not called, is compiled, or the "
    "reference gave other tokens"
)
_T = TypeVar("_T")


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

    Nothing that goes wrong with an output or a measure ends the training: it is warned of, once a
    layer.
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
        reference: as `lightly_collapse.tracking.CollapseTracker`.

    Raises:
        ValueError: if an argument is out of range, a layer does not exist, or `reference` fits no
            layer or is a part of the model.
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
        reference: nn.Module | Mapping[str, nn.Module] | None = None,
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
            model,
            self.layers,
            self._take,
            tokens,
            channels,
            prefix,
            self._wants,
            self._refuse,
            self._take_tokens,
        )
        self._dense = DenseCollector(
            model,
            self.layers,
            reference,
            tokens,
            channels,
            prefix,
            self._wants,
            lambda what, error: self.warn(f"dense {what}", f"{what} cannot be measured: {error}"),
        )
        self._calls: CallRecorder | None = CallRecorder(
            find_layers(model, self.layers), self._in, self._takes
        )

    def _takes(self) -> bool:
        return self.active and (self._model.training or not self._training_only)

    def _wants(self) -> bool:
        self._evaluated |= self.active and not self._takes()
        return self._takes() and self._in()

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
        metrics.update(rows)  # what fails here, such as another width, goes to _refuse
        self._taken[layer] = taken + rows.shape[0]
        self._widths[layer] = rows.shape[1]

    def _take_tokens(self, layer: str, tokens: Tensor) -> None:
        self._dense.take(layer, tokens)

    def _of(self, layer: str) -> LayerMetrics:
        if layer not in self._metrics:
            # Where this process had no row yet: other processes' devices, which NCCL needs.
            device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
            self._metrics[layer] = LayerMetrics(*self._settings).to(device)
        return self._metrics[layer]

    def flush(self) -> None:
        """Take in what layers of compiled modules gave; to be called once a step."""
        self._hooks.flush()

    def reset(self) -> None:
        """Forget all rows."""
        self._hooks.discard()
        self._taken.clear()
        self._dense.reset()
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
        processes = _of_all_processes((self._widths, self._dense.totals()))
        # In the same order on every process, so that all compute the same metrics.
        widths = {name: width for part, _ in processes for name, width in part.items()}
        for name, width in widths.items():
            try:
                reading = self._of(name).compute()
            except Exception as error:  # a decomposition that does not converge, out of memory
                self._refuse(name, error)
                continue
            if reading.scalars["rows"] or reading.scalars["dropped"]:
                dense = means(part[name] for _, part in processes if name in part)
                reading = replace(reading, scalars=reading.scalars | dense)
                found[name] = LayerReading(reading, width)
                self._warn_of(name, reading)
                if dense and name in self._dense.compared and "gram_drift" not in dense:
                    self.warn(
                        f"drift {name}", f"gram_drift of {name} was not measured: {_NO_DRIFT}"
                    )
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
        self._dense.remove()
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


def _of_all_processes(value: _T) -> list[_T]:
    """What every process has, in the order of their ranks."""
    if not _distributed():
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
