"""Losses and regularizers to add to a Lightly objective."""

from lightly_collapse.loss.directclr import DirectCLRLoss
from lightly_collapse.loss.ldreg import LDRegularizer
from lightly_collapse.loss.orthogonality import FrozenWeightsError, OrthogonalityRegularizer
from lightly_collapse.loss.variance_covariance import VarianceCovarianceRegularizer

__all__ = [
    "DirectCLRLoss",
    "FrozenWeightsError",
    "LDRegularizer",
    "OrthogonalityRegularizer",
    "VarianceCovarianceRegularizer",
]
