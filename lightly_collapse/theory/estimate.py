"""The predicted spectrum of a sample of images, with its bootstrap."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightly_collapse.functional import collapsed_dimensions, effective_rank
from lightly_collapse.theory.landscape import QuarticLandscape
from lightly_collapse.theory.views import Covariances, bootstrap_weights, estimate_covariances


@dataclass(frozen=True)
class Loss:
    """What of the loss and the model enters the landscape; see `QuarticLandscape`.

    Attributes:
        width: dimension of the embedding; None for that of the features.
        weight_decay: g, in the units of the landscape.
        invariance: kappa, extra weight on invariance.
        feature_norm: rho, where features are normalized.
    """

    width: int | None = None
    weight_decay: float = 0.0
    invariance: float = 0.0
    feature_norm: float | None = None

    def landscape(self, covariances: Covariances) -> QuarticLandscape:
        """The landscape of these covariances under this loss."""
        return QuarticLandscape.from_covariances(
            covariances.data,
            covariances.augmentation,
            weight_decay=self.weight_decay,
            invariance=self.invariance,
            feature_norm=self.feature_norm,
        )

    def spectrum(self, covariances: Covariances) -> Tensor:
        """Singular values of the clean embedding at the global minimum, one for each dimension."""
        width = len(covariances.data) if self.width is None else self.width
        return self.landscape(covariances).clean_spectrum(width, covariances.data)


_Quantity = Literal["spectrum", "collapsed", "effective_rank"]


@dataclass(frozen=True)
class SpectrumEstimate:
    """A spectrum and what follows from it, each with the values of the bootstrap samples.

    Attributes:
        covariances: of the sample.
        signal: the landscape of the data and the augmentation alone, without the loss's terms.
        plain: by name, the quantity on the sample.
        drawn: by name, the quantity on each bootstrap sample.
        rtol: tolerance of the count.
        n_images: images in the sample.
    """

    covariances: Covariances
    signal: QuarticLandscape
    plain: dict[_Quantity, Tensor]
    drawn: dict[_Quantity, Tensor]
    rtol: float
    n_images: int

    def interval(
        self, name: _Quantity, confidence: float, minus: "SpectrumEstimate | None" = None
    ) -> Tensor:
        """Basic bootstrap interval of a quantity, or of its difference to that of another sample.

        [2 t - t*_high, 2 t - t*_low], t the quantity on the sample, t*_low and t*_high quantiles
        over the bootstrap samples; widened to hold t. It has the bias in it, and bias there is:
        with few images and many features, chance makes directions look better kept than they
        would be with more images, so that t itself often is the upper end.

        Args:
            name: of the quantity.
            confidence: level, between 0 and 1.
            minus: an estimate from other views of the same images with the same seed.

        Returns:
            Lower and upper ends, stacked; not below 0 for a quantity itself.
        """
        plain, drawn = self.plain[name], self.drawn[name]
        if minus is not None:
            count = min(len(drawn), len(minus.drawn[name]))
            plain = plain - minus.plain[name]
            drawn = drawn[:count] - minus.drawn[name][:count]
        tails = torch.tensor([(1 + confidence) / 2, (1 - confidence) / 2]).to(drawn)
        ends = 2 * plain - drawn.quantile(tails, dim=0)
        if minus is None:
            ends = ends.clamp(min=0)
        return torch.stack([ends[0].minimum(plain), ends[1].maximum(plain)])


def estimate_spectrum(
    sample: Tensor, loss: Loss, rtol: float, resamples: int, seed: int
) -> SpectrumEstimate:
    """Predict the spectrum from views of a sample of images.

    Args:
        sample: shape (n, q, D), as `collect_views` returns.
        loss: what of the loss enters the landscape.
        rtol: tolerance of the count of collapsed dimensions.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        The estimate.
    """
    sample = sample.double()
    covariances = estimate_covariances(sample)
    spectra = [loss.spectrum(covariances)]
    spectra += [
        loss.spectrum(estimate_covariances(sample, weights))
        for weights in bootstrap_weights(len(sample), resamples, seed)
    ]
    quantities: dict[_Quantity, Tensor] = {
        "spectrum": torch.stack(spectra),
        "collapsed": torch.stack([_collapsed(s, rtol) for s in spectra]).double(),
        "effective_rank": torch.stack([_effective_rank(s) for s in spectra]),
    }
    return SpectrumEstimate(
        covariances=covariances,
        signal=Loss().landscape(covariances),
        plain={name: values[0] for name, values in quantities.items()},
        drawn={name: values[1:] for name, values in quantities.items()},
        rtol=rtol,
        n_images=len(sample),
    )


def _collapsed(spectrum: Tensor, rtol: float) -> Tensor:
    if not spectrum.any():
        return torch.tensor(len(spectrum))
    return collapsed_dimensions(spectrum, rtol)


def _effective_rank(spectrum: Tensor) -> Tensor:
    return effective_rank(spectrum) if spectrum.any() else spectrum.new_zeros(())
