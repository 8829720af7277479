"""Callbacks for Lightning trainers that other packages make, through Lightning's entry points.

Lightning asks the factories of the entry points `pytorch_lightning.callbacks_factory` and
`lightning.pytorch.callbacks_factory` for callbacks whenever a Trainer is made, in every program in
which this package is installed: so this module imports nothing of it, and gives none unless asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_callbacks: list[Any] = []


@contextmanager
def extra_callbacks(*callbacks: Any) -> Iterator[None]:
    """Give callbacks to the first Lightning Trainer that is made within the context.

    For programs that make the Trainer themselves and take no callbacks, such as LightlyTrain. Later
    Trainers get none: one callback belongs to one training.

    Args:
        callbacks: Lightning callbacks, such as `CollapseMonitor`.

    Raises:
        TypeError: if one is no Lightning callback.

    Examples:
        >>> from lightly_collapse.callbacks import CollapseMonitor, extra_callbacks
        >>> with extra_callbacks(CollapseMonitor(layers=("backbone",))):
        ...     pass  # lightly_train.pretrain(...)
    """
    for callback in callbacks:
        if not hasattr(callback, "on_train_batch_end"):
            raise TypeError(
                f"callbacks must be callbacks of Lightning, got {type(callback).__name__}"
            )
    _callbacks.extend(callbacks)
    try:
        yield
    finally:
        for callback in callbacks:
            if callback in _callbacks:
                _callbacks.remove(callback)


def factory() -> list[Any]:
    """What Lightning's entry point calls when a Trainer is made: the callbacks, handed over."""
    given = list(_callbacks)
    _callbacks.clear()
    return given
