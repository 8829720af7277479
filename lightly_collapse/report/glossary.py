"""What each number means, in one line, and which way is better."""

from typing import NamedTuple

DOCS = "https://lightly-collapse.readthedocs.io/en/latest"
"""Where the documentation is published."""


def docs_url(name: str) -> str:
    """Where the documentation says what a measure means and when it misleads.

    Args:
        name: of the measure, as in `GLOSSARY`.

    Examples:
        >>> docs_url("effective_rank").rpartition("/")[2]
        'measures.html#effective-rank'
    """
    return f"{DOCS}/guide/measures.html#{name.replace('_', '-')}"


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
