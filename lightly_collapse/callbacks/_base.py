"""One Callback class for `pytorch_lightning.Trainer` and `lightning.pytorch.Trainer`."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

if TYPE_CHECKING:
    Callback = pl.Callback
else:
    # Both packages hold the same code twice, and each asks for an instance of its own class: the
    # trainer of older versions, LightningCLI and type checks of `trainer.callbacks` of all.
    _bases: list[type[Any]] = [pl.Callback]
    if find_spec("lightning") is not None:
        from lightning.pytorch.callbacks import Callback as _LightningCallback

        if _LightningCallback is not pl.Callback:
            _bases.append(_LightningCallback)

    Callback = type("Callback", tuple(_bases), {"__doc__": "A callback of both Lightnings."})
