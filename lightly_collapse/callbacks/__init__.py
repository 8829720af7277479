"""Lightning callbacks: the regularizers and measures with no change to the user's module."""

from lightly_collapse._extra_callbacks import extra_callbacks
from lightly_collapse.callbacks.collapse_monitor import CollapseMonitor
from lightly_collapse.callbacks.ldreg import LDRegCallback
from lightly_collapse.callbacks.orthogonality import OrthogonalityCallback
from lightly_collapse.callbacks.schedule import RegularizerSchedule

__all__ = [
    "CollapseMonitor",
    "LDRegCallback",
    "OrthogonalityCallback",
    "RegularizerSchedule",
    "extra_callbacks",
]
