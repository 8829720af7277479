"""What every metric here shares: states that merge, rows that are checked, float64 that stays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from typing_extensions import override

from lightly_collapse._checks import check_rows
from lightly_collapse._distributed import gathering, raise_on_all

NanStrategy = Literal["error", "drop"]
_NAN_STRATEGIES: tuple[NanStrategy, ...] = get_args(NanStrategy)


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Without autocast, gradients and inference mode.

    Lightning validates in inference mode; states made there could not be updated outside it.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def check_width(z: Tensor, width: int) -> None:
    """Raise a ValueError unless `z` is (samples, dimensions) and as wide as the batches before.

    Args:
        z: a batch.
        width: of the batches before; 0 where there are none.
    """
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(
            f"z must be 2-D (samples, dimensions) and not empty, got shape {tuple(z.shape)}"
        )
    if width not in (0, z.shape[1]):
        raise ValueError(f"z must have {width} columns as the batches before, got {z.shape[1]}")


def finite_rows(z: Tensor) -> Tensor:
    """Which rows of (n, anything) hold no NaN and no inf; much faster than `isfinite`."""
    x = z.float() if z.element_size() < 4 else z
    return x.abs().amax(dim=1).isfinite()


class MergeableMetric(Metric):
    """A metric whose states of several processes, or batches, merge into that of all their rows.

    Subclasses declare tensor states and say in `_merge` how they combine. That one rule serves
    DDP (with unequal shares, or a process without any row), `forward` and `merge_state`. States
    are kept in `state_dict`; `persistent(False)` leaves them out.

    Floating-point states stay float64 through `.half()`, `.to(dtype)` and Lightning's precision
    plugins; on devices without float64 (Apple's MPS) they stay on the CPU.

    Bad input is a ValueError at once, but among several processes, where the others would wait for
    this one in `compute`, one that `compute` raises on all of them.

    Attributes:
        rows: number of rows taken in, as an int64 tensor.
        dropped: number of rows left out for holding NaN or inf, as an int64 tensor.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False

    rows: Tensor
    dropped: Tensor
    settings: Tensor

    def __init__(
        self, nan_strategy: NanStrategy, settings: Sequence[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if nan_strategy not in _NAN_STRATEGIES:
            raise ValueError(
                f"nan_strategy must be one of {', '.join(_NAN_STRATEGIES)}, got {nan_strategy!r}"
            )
        self.nan_strategy = nan_strategy
        # A MetricCollection groups metrics by equal states, torchmetrics 1.6 by an equal first one:
        # those that treat the same rows differently must not look equal.
        self._add("settings", torch.tensor([_NAN_STRATEGIES.index(nan_strategy), *settings]))
        self._add("rows", torch.tensor(0))
        self._add("dropped", torch.tensor(0))
        self._failure: ValueError | None = None

    @override
    def reset(self) -> None:
        """Back to no row."""
        super().reset()
        self._failure = None

    def _add(self, name: str, default: Tensor) -> None:
        self.add_state(name, default, dist_reduce_fx=None, persistent=True)

    def _merge(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The states of all rows, from at least one set of states; none is changed."""
        return {
            "rows": torch.stack([s["rows"] for s in states]).sum(),
            "dropped": torch.stack([s["dropped"] for s in states]).sum(),
            "settings": states[0]["settings"],
        }

    def _finite_rows(self, z: Tensor, name: str = "z", flat: Tensor | None = None) -> Tensor:
        """`z` on this metric's device, its rows checked, or those not finite dropped and counted.

        `flat` is the (rows, anything) view in which a row is looked at, `z` itself by default.
        """
        z = z.detach().to(self.device)
        if self.nan_strategy == "error":
            check_rows(z if flat is None else flat.detach(), name)
            return z
        finite = finite_rows(z if flat is None else flat.detach().to(self.device))
        kept = z[finite]
        self.dropped = self.dropped + (z.shape[0] - kept.shape[0])
        return kept

    @override
    def _wrap_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_update(update)

        @wraps(update)
        def deferring(*args: Any, **kwargs: Any) -> None:
            try:
                wrapped(*args, **kwargs)
            except ValueError as error:
                if not (gathering() and self.sync_on_compute):
                    raise
                self._failure = self._failure or error

        return deferring

    def _check_updated(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self.rows:
            raise ValueError(
                f"{type(self).__name__}.compute needs at least one update with finite rows, got "
                f"none ({int(self.dropped)} dropped)"
            )

    def _output(self, value: Tensor) -> Tensor:
        """In the dtype of the metric; half types would overflow."""
        keep = self.dtype == torch.float64 or not value.is_floating_point()
        return value if keep else value.float()

    def tensor_states(self) -> dict[str, Tensor]:
        """All states by name."""
        return {name: getattr(self, name) for name in self._defaults}

    def _set_states(self, states: Mapping[str, Tensor]) -> None:
        for name, value in states.items():
            setattr(self, name, value)

    def merge_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take in the rows of several other metrics at once, by their states."""
        self._set_states(self._merge([self.tensor_states(), *states]))
        self.mark_updated()

    def mark_updated(self) -> None:
        """Forget the value of the rows before."""
        self._computed = None
        self._update_count = max(1, self._update_count)

    @override
    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None
    ) -> None:
        group = process_group or self.process_group
        raise_on_all(self._failure, self.device, process_group or self.process_group)
        gathered = {name: dist_sync_fn(getattr(self, name), group=group) for name in self._defaults}
        processes = range(len(gathered["rows"]))
        self._set_states(self._merge([{n: v[p] for n, v in gathered.items()} for p in processes]))

    @override
    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or a list of values, as `torchmetrics.Metric.plot`.

        Args:
            val: what `compute` or `forward` gave, or a list of such; `compute()` by default.
            ax: matplotlib axes to draw on; new ones by default.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    @override
    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        self._set_states(self._merge([incoming_state, self.tensor_states()]))
        self.mark_updated()

    @override
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        given = {n: state_dict[prefix + n] for n in self._defaults if prefix + n in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, value in given.items():
            setattr(self, name, value.clone().to(self.device))
        self._computed = None
        self._update_count = int(self.rows > 0)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Any:
        # Only the device is followed: see the class.
        super()._apply(fn, exclude_state=tuple(self._defaults))
        target = fn(torch.zeros(1, device=self.device)).device
        self._device = torch.device("cpu") if target.type == "mps" else target
        for name, default in self._defaults.items():
            if isinstance(default, Tensor):
                self._defaults[name] = default.to(self._device)
                setattr(self, name, getattr(self, name).to(self._device))
        return self
