"""Collapse while a model trains: hooks, a schedule in steps, a table and an alarm; no trainer."""

from lightly_collapse.tracking.alarm import CollapseAlarm, CollapseError, CollapseWarning
from lightly_collapse.tracking.tracker import CollapseTracker
from lightly_collapse.tracking.views import RepresentationHook

__all__ = [
    "CollapseAlarm",
    "CollapseError",
    "CollapseTracker",
    "CollapseWarning",
    "RepresentationHook",
]
