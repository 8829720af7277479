"""What each number means, which way is better, and when it misleads."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A number's title, its meaning, and whether `higher` or `lower` is better, or `neither`."""

    title: str
    meaning: str
    better: str


GLOSSARY: dict[str, Entry] = {
    "rankme": Entry(
        "RankMe",
        "how many dimensions the features use, weighted by how evenly; their mean counts as one",
        "higher",
    ),
    "effective_rank": Entry(
        "effective rank", "the same after the mean has been taken out", "higher"
    ),
    "collapsed_dimensions": Entry(
        "collapsed dimensions",
        "dimensions whose singular value is next to nothing beside the largest",
        "lower",
    ),
    "stable_rank": Entry(
        "stable rank",
        "total energy in units of the strongest direction, mean included",
        "higher",
    ),
    "participation_ratio": Entry(
        "participation ratio",
        "how many principal components share the variance, dominated by the strongest",
        "higher",
    ),
    "nesum": Entry("NESum", "total variance in units of the strongest component", "higher"),
    "alpha_req": Entry(
        "α-ReQ",
        "how fast the variances decay; near 1 is healthy, far above means few directions dominate",
        "neither",
    ),
    "condition_number": Entry(
        "condition number", "strongest direction in units of the weakest", "lower"
    ),
    "mlid": Entry(
        "mLID",
        "in how many directions a sample's nearest neighbours lie (geometric mean)",
        "higher",
    ),
    "two_nn": Entry(
        "TwoNN dimension", "of how many dimensions the whole cloud of samples looks", "higher"
    ),
    "danco": Entry(
        "DANCo dimension",
        "the same from norms and angles of neighbours, as the LDReg paper reports it",
        "higher",
    ),
    "uniformity": Entry(
        "uniformity", "how evenly samples spread on the unit sphere; 0 is one point", "lower"
    ),
    "patch_rank": Entry(
        "patch rank",
        "how many dimensions the patches of one image use; mean over images",
        "higher",
    ),
    "mean_token_cosine": Entry(
        "token cosine", "how alike the patches of one image are; 1 is all the same", "lower"
    ),
    "norm_outliers": Entry(
        "norm outliers", "share of an image's patches with a far larger norm than the rest", "lower"
    ),
    "gram_drift": Entry(
        "Gram drift",
        "how far the similarities between patches have moved from the reference model's",
        "lower",
    ),
}
"""In the order in which they are shown."""


class Help(NamedTuple):
    """What a page says of a measure at its end: its title, and what it is and when it misleads."""

    title: str
    text: str


HELP: dict[str, Help] = {
    "collapsed_dimensions": Help(
        "Collapsed dimensions",
        "The number of singular values of the centred features below rtol times the largest. "
        "Misleads where one direction dominates, as outliers or one feature on a larger scale make "
        "it: then all other directions look collapsed.",
    ),
    "rankme": Help(
        "RankMe",
        "The exponential of the entropy of the singular values, each divided by their sum; the "
        "features are not centred (Garrido et al., 2023). Misleads where the features have a large "
        "mean, which counts as one strong direction.",
    ),
    "effective_rank": Help(
        "Effective rank",
        "The exponential of the entropy of the singular values of the centred features, each "
        "divided by their sum (Roy and Vetterli, 2007). Too low where there are few rows for each "
        "dimension.",
    ),
    "stable_rank": Help(
        "Stable rank",
        "The sum of the squared singular values divided by the largest of them, not centred. "
        "One strong direction hides all others.",
    ),
    "participation_ratio": Help(
        "Participation ratio",
        "The squared sum of the covariance's eigenvalues divided by the sum of their squares. "
        "Dominated by the strongest directions; too low where there are few rows.",
    ),
    "nesum": Help(
        "NESum",
        "The sum of the covariance's eigenvalues divided by the largest (He and Ozay, 2022). "
        "One strong direction hides all others.",
    ),
    "alpha_req": Help(
        "α-ReQ",
        "How steeply the logarithm of the eigenvalues falls with that of their index: the exponent "
        "of a power law (Agrawal et al., 2022). Misleads where the spectrum is no power law: a "
        "line can always be fitted.",
    ),
    "condition_number": Help(
        "Condition number",
        "The largest singular value divided by the smallest. Infinite as soon as one dimension is "
        "exactly zero, and then says nothing of the others.",
    ),
    "mlid": Help(
        "mLID",
        "The geometric mean over the samples of the local intrinsic dimensionality, estimated from "
        "the distances to the nearest neighbours (Huang et al., 2024). Comparable only between "
        "equal numbers of neighbours and equal numbers of rows.",
    ),
    "two_nn": Help(
        "TwoNN dimension",
        "An intrinsic dimension from the ratio of the distances to the two nearest neighbours "
        "(Facco et al., 2017). Misleads where rows repeat.",
    ),
    "danco": Help(
        "DANCo dimension",
        "The dimension whose distances and angles between neighbours fit those of the samples best "
        "(Ceruti et al., 2014), computed by scikit-dimension. Comparable only between equal "
        "numbers of rows.",
    ),
    "uniformity": Help(
        "Uniformity",
        "The logarithm of the mean Gaussian potential between samples on the unit sphere (Wang and "
        "Isola, 2020); 0 is one point, lower is more even. Sees directions alone: lengths are "
        "divided out.",
    ),
    "orthogonality_residual": Help(
        "Orthogonality residual",
        "The squared distance of a weight's filters from orthonormal ones, ‖WWᵀ − I‖² on the "
        "smaller side. Grows with the number of filters: compare equal layers.",
    ),
    "patch_rank": Help(
        "Patch rank",
        "The effective rank of the patch tokens of one image, mean over a sample of images. "
        "Misleads where images show little: a plain background has few directions.",
    ),
    "mean_token_cosine": Help(
        "Token cosine",
        "The mean cosine between the patch tokens of one image; 1 is all the same. Misleads where "
        "images show little, as patch rank does.",
    ),
    "norm_outliers": Help(
        "Norm outliers",
        "The share of an image's patches with over three times its median norm (Darcet et al., "
        "2024). Misleads where norms are equal because a last LayerNorm made them so.",
    ),
    "gram_drift": Help(
        "Gram drift",
        "The mean square change of the cosines between patches from a reference model (DINOv3, "
        "equation 2). Misleads where the reference is untrained: there is nothing worth keeping.",
    ),
    "knn": Help(
        "kNN accuracy",
        "The accuracy of a vote of the nearest labelled images on the frozen representation. It "
        "answers for the labels that it was given, and needs its standard error beside it: 0.6 "
        "points at 98 % of 540 images.",
    ),
    "linear": Help(
        "Linear probe",
        "The accuracy of a linear classifier on the frozen representation. Read it as the kNN "
        "accuracy, with its standard error.",
    ),
    "embedding_rankme": Help(
        "RankMe of the embedding",
        "RankMe of what the loss acts on, after the projector. The embedding may collapse while "
        "the representation does not: that is what a projector is for.",
    ),
    "signal": Help(
        "Signal",
        "The sum over directions of a/(a+c), the share of a direction's variance that lies between "
        "images and not between views of one image; in dimensions. Says nothing of features that a "
        "deep network could make of the input.",
    ),
}
"""By the name of the measure; `docs/guide/measures.md` has the same texts."""
