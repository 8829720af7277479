"""Pure functions, tensor in, tensor out: every formula of the package, once."""

from lightly_collapse.functional.covariance import covariance_penalty, variance_penalty
from lightly_collapse.functional.hypersphere import alignment, uniformity, wasserstein_uniformity
from lightly_collapse.functional.intrinsic_dimension import (
    fisher_rao_distance,
    geometric_mean,
    lid_mle,
    lid_mom,
)
from lightly_collapse.functional.lid_distributions import (
    asymptotic_kl_divergence,
    frechet_variance,
)
from lightly_collapse.functional.lidar import lidar
from lightly_collapse.functional.orthogonality import orthogonality_penalty, weight_matrix
from lightly_collapse.functional.pairs import (
    cka,
    information_imbalance,
    modality_gap,
    neighbor_overlap,
)
from lightly_collapse.functional.spectrum import (
    alpha_req,
    collapsed_dimensions,
    condition_number,
    effective_rank,
    nesum,
    normalized_eigenvalues,
    participation_ratio,
    rankme,
    singular_values,
    stable_rank,
)
from lightly_collapse.functional.two_nn import danco, two_nn

__all__ = [
    "alignment",
    "alpha_req",
    "asymptotic_kl_divergence",
    "cka",
    "collapsed_dimensions",
    "condition_number",
    "covariance_penalty",
    "danco",
    "effective_rank",
    "fisher_rao_distance",
    "frechet_variance",
    "geometric_mean",
    "information_imbalance",
    "lid_mle",
    "lid_mom",
    "lidar",
    "modality_gap",
    "neighbor_overlap",
    "nesum",
    "normalized_eigenvalues",
    "orthogonality_penalty",
    "participation_ratio",
    "rankme",
    "singular_values",
    "stable_rank",
    "two_nn",
    "uniformity",
    "variance_penalty",
    "wasserstein_uniformity",
    "weight_matrix",
]
