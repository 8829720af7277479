"""Prevent, measure, explain and transfer: dimensional collapse in self-supervised learning.

The package is a plugin for Lightly. Import what you need from its parts, for example
`from lightly_collapse.loss import OrthogonalityRegularizer`; nothing is loaded before it is used.
"""

__version__ = "0.2.0"
