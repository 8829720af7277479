"""torchmetrics classes over `lightly_collapse.functional`: streaming, DDP-correct, bounded."""

from lightly_collapse.metrics.collection import CollapseMetrics, collapse_metrics
from lightly_collapse.metrics.dense import TokenMetrics
from lightly_collapse.metrics.feature_hooks import FeatureHooks, hidden_features
from lightly_collapse.metrics.features import feature_rows
from lightly_collapse.metrics.hypersphere import Alignment, Uniformity, WassersteinUniformity
from lightly_collapse.metrics.intrinsic_dimension import DANCo, LocalIntrinsicDimension, TwoNN
from lightly_collapse.metrics.layer import LayerMetrics, Reading
from lightly_collapse.metrics.lidar import LiDAR
from lightly_collapse.metrics.neighbor_distances import NeighborDistances
from lightly_collapse.metrics.pairs import (
    CKA,
    InformationImbalance,
    ModalityGap,
    NeighborOverlap,
)
from lightly_collapse.metrics.sketch import EmbeddingSketch, RowSample
from lightly_collapse.metrics.spectrum import (
    AlphaReQ,
    CollapsedDimensions,
    ConditionNumber,
    EffectiveRank,
    NESum,
    ParticipationRatio,
    RankMe,
    Spectrum,
    StableRank,
)
from lightly_collapse.metrics.tokens import GramDrift, MeanTokenCosine, NormOutliers, PatchRank
from lightly_collapse.metrics.weights import WeightSpectrum, weight_spectra

__all__ = [
    "CKA",
    "Alignment",
    "AlphaReQ",
    "CollapseMetrics",
    "CollapsedDimensions",
    "ConditionNumber",
    "DANCo",
    "EffectiveRank",
    "EmbeddingSketch",
    "FeatureHooks",
    "GramDrift",
    "InformationImbalance",
    "LayerMetrics",
    "LiDAR",
    "LocalIntrinsicDimension",
    "MeanTokenCosine",
    "ModalityGap",
    "NESum",
    "NeighborDistances",
    "NeighborOverlap",
    "NormOutliers",
    "ParticipationRatio",
    "PatchRank",
    "RankMe",
    "Reading",
    "RowSample",
    "Spectrum",
    "StableRank",
    "TokenMetrics",
    "TwoNN",
    "Uniformity",
    "WassersteinUniformity",
    "WeightSpectrum",
    "collapse_metrics",
    "feature_rows",
    "hidden_features",
    "weight_spectra",
]
