"""Theory that runs: which dimensions collapse, when, and why, before or beside training.

Three papers, each solved as far as it can be and run where it cannot: the contrastive covariance
and the linear dynamics of DirectCLR (Jing et al. 2022), the quartic loss landscape (Ziyin et al.
2023), and a prediction from real images that stands on both.
"""

from lightly_collapse.theory.closed_forms import (
    aligned_singular_values,
    exponential_solution,
    saturating_singular_values,
)
from lightly_collapse.theory.contrastive_covariance import (
    ContrastiveCovariance,
    contrastive_covariance,
)
from lightly_collapse.theory.landscape import QuarticLandscape
from lightly_collapse.theory.linear_dynamics import (
    LinearDynamics,
    implicit_regularization_dynamics,
    strong_augmentation_dynamics,
)
from lightly_collapse.theory.predict import CollapsePrediction, LeaveOneOut, predict_collapse
from lightly_collapse.theory.second_order import (
    barlow_twins_landscape,
    byol_matrix,
    vicreg_matrix,
)

__all__ = [
    "CollapsePrediction",
    "ContrastiveCovariance",
    "LeaveOneOut",
    "LinearDynamics",
    "QuarticLandscape",
    "aligned_singular_values",
    "barlow_twins_landscape",
    "byol_matrix",
    "contrastive_covariance",
    "exponential_solution",
    "implicit_regularization_dynamics",
    "predict_collapse",
    "saturating_singular_values",
    "strong_augmentation_dynamics",
    "vicreg_matrix",
]
