"""Lightning callbacks: regularize and measure with no change to the user's module."""

from lightly_collapse.callbacks.collapse_monitor import CollapseMonitor

__all__ = ["CollapseMonitor"]
