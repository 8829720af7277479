"""A picture of a representation: t-SNE of its rows, coloured by class."""

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from lightly_collapse.report.pages.figures import COLORS, figure

_LEGEND = 20


def tsne_positions(
    features: Tensor, perplexity: float = 30.0, seed: int = 0
) -> tuple[Tensor, float]:
    """Positions of rows in the plane by t-SNE, from principal components as the start.

    Args:
        features: (n, d), n at least 5.
        perplexity: effective number of neighbours; a third of the other rows where there are fewer
            than three times as many.
        seed: of the optimisation.

    Returns:
        (n, 2) and the perplexity that was taken.

    Raises:
        ValueError: if there are fewer than five rows, or one holds NaN or inf.

    Source: van der Maaten and Hinton, JMLR 9, 2008, as implemented by scikit-learn.

    Examples:
        >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        >>> positions, perplexity = tsne_positions(x)
        >>> positions.shape, perplexity
        (torch.Size([40, 2]), 13.0)
    """
    if features.ndim != 2 or len(features) < 5:
        raise ValueError(
            f"features must be (n, d) with five rows or more, got shape {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or inf")
    perplexity = min(perplexity, (len(features) - 1) / 3)
    start = "pca" if features.shape[1] > 1 else "random"
    found = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(
        features.float().numpy()
    )
    return torch.from_numpy(found), perplexity


def embedding_picture(features: Tensor, labels: Tensor, size: int = 2000, seed: int = 0) -> Figure:
    """Draw representations by t-SNE, a colour a class.

    Distances between groups and their sizes mean nothing in such a picture; which points are
    neighbours does.

    Args:
        features: (n, d) representations.
        labels: (n,) classes from 0.
        size: draw a random sample of so many rows at most.
        seed: of the sample and the optimisation.

    Returns:
        The figure.

    Raises:
        ValueError: as `tsne_positions`.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:size]
    positions, perplexity = tsne_positions(features[order], seed=seed)
    classes = torch.unique(labels[order]).tolist()
    scale = mpl.colormaps["turbo"]
    with figure(6.4, 5.2) as (fig, axes):
        for number, label in enumerate(classes):
            own = positions[labels[order] == label]
            color = (
                COLORS[number]
                if len(classes) <= len(COLORS)
                else scale(number / max(1, len(classes) - 1))
            )
            axes.scatter(own[:, 0], own[:, 1], s=6, color=color, label=str(label), linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_title(f"t-SNE of {len(order)} representations, perplexity {perplexity:.0f}")
        if len(classes) <= _LEGEND:
            fig.legend(title="class", loc="outside right upper", markerscale=2.5)
    return fig
