"""Figures and self-contained HTML pages of the records in `lightly_collapse.report`."""
