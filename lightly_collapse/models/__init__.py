"""Heads between the backbone and the loss."""

from lightly_collapse.models.heads import DirectCLRHead, LinearProjectionHead

__all__ = ["DirectCLRHead", "LinearProjectionHead"]
