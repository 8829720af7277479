"""The four questions of the landscape paper, each answered on the handwritten digits.

Ziyin, Lubana, Ueda and Tanaka, "What shapes the loss landscape of self-supervised learning?"
(ICLR 2023): when collapse happens, what normalization and bias change, when collapse helps, and
what makes self-supervised learning robust to class imbalance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from lightly_collapse.theory.against_training import (
    digit_pixels,
    noise_directions,
    train_spectral_contrastive,
)
from lightly_collapse.theory.landscape import QuarticLandscape

_NOISE = 0.5  # standard deviation of the augmentation on half the directions of pixel space
_TRIED = (0.001, 0.01, 0.1)  # weight decays at which encoders are trained
_FEW = 16  # views of an image to train on


@dataclass(frozen=True)
class Answer:
    """A question, a sentence that answers it with a number, and the curves of its figure.

    Attributes:
        question: in words.
        sentence: the answer.
        xlabel: of the figure.
        ylabel: of the figure.
        log_x: whether the horizontal axis is logarithmic.
        lines: by label, x and y of each line.
        points: by label, x and y of what was trained rather than predicted.
    """

    question: str
    sentence: str
    xlabel: str
    ylabel: str
    log_x: bool
    lines: dict[str, tuple[list[float], list[float]]]
    points: dict[str, tuple[list[float], list[float]]]


def answer_all(seed: int = 0, progress: Callable[[int, int], None] | None = None) -> list[Answer]:
    """All four answers.

    Args:
        seed: of noise directions, views and splits.
        progress: called with (answers done, answers).

    Returns:
        The answers, in the order of the paper.
    """
    questions = (when_collapse_happens, normalization_and_bias, collapse_that_helps, imbalance)
    answers = []
    for number, question in enumerate(questions):
        answers.append(question(seed))
        if progress is not None:
            progress(number + 1, len(questions))
    return answers


def when_collapse_happens(seed: int = 0) -> Answer:
    """Dimensions left against weight decay, predicted and trained on samples."""
    images = digit_pixels()
    root = _NOISE * noise_directions(images.shape[1], seed)
    data, augmentation = torch.cov(images.T), root.T @ root
    decays = torch.logspace(-4, 0.2, 60).tolist()
    width = images.shape[1]

    def rank(decay: float) -> int:
        return QuarticLandscape.from_covariances(data, augmentation, weight_decay=decay).rank(width)

    predicted = [rank(decay) for decay in decays]
    tried = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    trained = []
    for decay in tried:
        weight = train_spectral_contrastive(
            images, root, weight_decay=2 * decay, views=32, seed=seed
        )
        trained.append(int(_rank(weight)))
    agree = sum(rank(decay) == found for decay, found in zip(tried, trained, strict=True))
    signal = float(torch.linalg.eigvalsh(data.double())[-1])
    return Answer(
        question="When does collapse happen?",
        sentence=(
            f"Where weight decay exceeds the signal: of {rank(1e-4)} dimensions {rank(0.01)} are "
            f"left at g = 0.01 and {rank(0.1)} at g = 0.1, and none from g = {signal:.2f} on, the "
            "largest variance of the images. Encoders trained on samples keep the predicted number "
            f"at {agree} of {len(tried)} weight decays. Augmentation alone shrinks directions and "
            "kills none."
        ),
        xlabel="weight decay g",
        ylabel="dimensions left",
        log_x=True,
        lines={"predicted": (decays, [float(r) for r in predicted])},
        points={"trained on samples": (tried, [float(r) for r in trained])},
    )


def normalization_and_bias(seed: int = 0) -> Answer:
    """Dimensions left against weight decay with and without normalized features."""
    raw = torch.from_numpy(load_digits().data).float() / 16
    mean, width = raw.mean(0), raw.shape[1]
    data, augmentation = torch.cov(raw.T), _NOISE**2 * torch.eye(width)
    decays = torch.logspace(-4, 0.2, 60).tolist()
    ranks = {}
    norms = {"plain": None, "temperature 0.02": 25.0, "temperature 0.1": 5.0,
             "temperature 1": 0.5}  # fmt: skip
    for label, norm in norms.items():
        ranks[label] = [
            QuarticLandscape.from_covariances(
                data, augmentation, weight_decay=decay, feature_norm=norm
            ).rank(width)
            for decay in decays
        ]
    points = {}
    for label, norm in norms.items():
        if norm is not None:
            weight = train_spectral_contrastive(
                raw - mean,
                _NOISE * torch.eye(width),
                weight_decay=2 * _TRIED[-1],
                feature_norm=norm,
                views=_FEW,
                seed=seed,
            )
            points[f"trained, {label}"] = ([_TRIED[-1]], [_rank(weight)])
    weights = [
        train_spectral_contrastive(
            raw,
            _NOISE * torch.eye(width),
            weight_decay=2 * decay,
            views=_FEW,
            seed=seed,
        )
        for decay in _TRIED
    ]
    points["trained, plain"] = ([*_TRIED], [_rank(weight) for weight in weights])
    narrow, decay = 8, 0.1
    W = QuarticLandscape.from_covariances(data, augmentation, mean=mean).global_minimum(narrow)
    embedded = QuarticLandscape(W @ data.double() @ W.T, W @ (data + augmentation).double() @ W.T)
    without = float(embedded.whitened_eigenvalues.sum())
    centred = QuarticLandscape.from_covariances(data, augmentation)
    with_bias = float(centred.whitened_eigenvalues[:narrow].sum())
    trained_without, trained_with = (
        _signal(
            train_spectral_contrastive(
                images, _NOISE * torch.eye(width), width=narrow, views=_FEW, seed=seed
            ),
            centred,
        )
        for images in (raw, raw - mean)
    )
    plain = QuarticLandscape.from_covariances(data, augmentation, weight_decay=decay).rank(width)
    sharp, usual, soft = (ranks[label][0] for label in list(norms)[1:])
    return Answer(
        question="What do normalization and bias change?",
        sentence=(
            f"Normalized features do not feel weight decay: at g = {decay} a plain model keeps "
            f"{plain} dimensions, a normalized one {usual} whatever g is (temperature 0.1; "
            f"{sharp} at 0.02, {soft} at 1), and never none. A bias gives back the dimension that "
            f"the mean of the images takes: at width {narrow} the embedding carries "
            f"{with_bias:.2f} dimensions of signal with the mean removed and {without:.2f} "
            f"without, trained on samples {trained_with:.2f} and {trained_without:.2f}."
        ),
        xlabel="weight decay g",
        ylabel="dimensions left",
        log_x=True,
        lines={
            (label if label == "plain" else f"normalized, {label}"): (
                decays,
                [float(r) for r in found],
            )
            for label, found in ranks.items()
        },
        points=points,
    )


def collapse_that_helps(seed: int = 0) -> Answer:
    """Accuracy against the strength of an augmentation that randomises a nuisance."""
    digits = load_digits()
    images, labels = digit_pixels(), digits.target
    generator = torch.Generator().manual_seed(seed)
    nuisance = noise_directions(images.shape[1], seed)
    amplitude = 1.0  # of the nuisance in the images, by direction; a pixel has about 0.3
    spoiled = (
        images + amplitude * torch.randn(len(images), len(nuisance), generator=generator) @ nuisance
    )
    data = torch.cov(spoiled.T)
    train, test = train_test_split(
        torch.arange(len(images)), test_size=0.3, stratify=labels, random_state=seed
    )
    strengths = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]
    accuracy, kept = [], []

    def vote(weight: torch.Tensor) -> float:
        z = (spoiled.double() @ weight.T).numpy()
        neighbours = KNeighborsClassifier(5).fit(z[train], labels[train])
        return 100 * float(neighbours.score(z[test], labels[test]))

    for strength in strengths:
        augmentation = (strength * amplitude) ** 2 * nuisance.T @ nuisance
        # The loss weighs invariance once more, so that augmentation can kill.
        landscape = QuarticLandscape.from_covariances(
            data, augmentation + 1e-3 * torch.eye(len(data)), invariance=1.0
        )
        accuracy.append(vote(landscape.global_minimum(len(data))))
        kept.append(float(landscape.rank(len(data))))
    tried = [0.0, 0.5, 1.0, 2.0]
    trained = [
        train_spectral_contrastive(
            spoiled - spoiled.mean(0),
            torch.cat([strength * amplitude * nuisance, 1e-3**0.5 * torch.eye(len(data))]),
            invariance=1.0,
            views=_FEW,
            seed=seed,
        )
        for strength in tried
    ]
    gone = next(k for k in range(len(strengths)) if kept[k] <= len(data) - len(nuisance))
    return Answer(
        question="When does collapse help?",
        sentence=(
            f"Where it removes a nuisance: with {len(nuisance)} of {len(data)} directions of the "
            "images drowned in noise, the five nearest neighbours in the embedding find "
            f"{accuracy[0]:.1f} % of the classes without an augmentation ({kept[0]:.0f} "
            f"dimensions) and {accuracy[gone]:.1f} % with one that randomises the nuisance "
            f"{strengths[gone]:g} times as strongly as the images have it, which collapses it "
            f"({kept[gone]:.0f} dimensions). Shrinking it does nearly as much."
        ),
        xlabel="strength of the augmentation / nuisance in the images",
        ylabel="accuracy in %, dimensions",
        log_x=False,
        lines={
            "accuracy of 5 nearest neighbours, %": (strengths, accuracy),
            "dimensions left": (strengths, kept),
        },
        points={
            "accuracy, trained on samples": (tried, [vote(weight) for weight in trained]),
            "dimensions, trained on samples": (tried, [_rank(weight) for weight in trained]),
        },
    )


def imbalance(seed: int = 0) -> Answer:
    """What is left of a class's own direction as the class gets rare."""
    images, labels = digit_pixels(), torch.from_numpy(load_digits().target)
    means = torch.stack([images[labels == k].mean(0) for k in range(10)])
    variance = 1e-3
    augmentation = variance * torch.eye(images.shape[1])
    shares = torch.logspace(-3, -1, 40).tolist()
    rare = seed % 10
    whitened, variances = [], []
    # The direction that tells the rare class from the others' span.
    others = torch.cat([means[:rare], means[rare + 1 :]]).double()
    span = torch.linalg.qr((others - others.mean(0)).T[:, :8]).Q
    own = means[rare].double() - others.mean(0)
    own = own - span @ (span.T @ own)
    own = own / own.norm()

    def frequencies(share: float) -> torch.Tensor:
        p = torch.full((10,), (1 - share) / 9)
        p[rare] = share
        return p

    for share in shares:
        landscape = QuarticLandscape.from_mixture(means, frequencies(share), augmentation)
        a = float(own @ landscape.S @ own) - variance
        whitened.append(a / (a + variance))
        variances.append(a)
    tried = [0.001, 0.003, 0.01, 0.03, 0.1]
    trained = []
    generator = torch.Generator().manual_seed(seed)
    for share in tried:
        drawn = torch.multinomial(frequencies(share), 10_000, True, generator=generator)
        sample = means[drawn]
        noise = variance**0.5 * torch.eye(images.shape[1])
        weight = train_spectral_contrastive(sample - sample.mean(0), noise, views=4, seed=seed)
        S = QuarticLandscape.from_mixture(means, frequencies(share), augmentation).S
        # w^T V^T V w, w the unit vector along S^(1/2) own; a / (a + s^2) at the minimum.
        trained.append(float((weight @ S @ own).square().sum() / (own @ S @ own)))
    return Answer(
        question="What makes it robust to class imbalance?",
        sentence=(
            "Whitening: as a class falls from one image in ten to one in "
            f"{1 / shares[0]:.0f}, the variance a of its own direction falls by a factor "
            f"{variances[-1] / variances[0]:.0f}, the share a/(a + s²) that the embedding keeps of "
            f"it from {whitened[-1]:.2f} to {whitened[0]:.2f} only, because a stays above the "
            f"variance of the augmentation, s² = {variance}."
        ),
        xlabel="share of the rare class",
        ylabel="of the rare class's own direction",
        log_x=True,
        lines={
            "kept by the embedding, a/(a + s²)": (shares, whitened),
            "variance, relative to balance": (shares, [v / variances[-1] for v in variances]),
        },
        points={"kept, trained on samples": (tried, trained)},
    )


def _rank(weight: torch.Tensor) -> float:
    """How many dimensions a trained encoder keeps."""
    values = torch.linalg.svdvals(weight)
    return float((values > 1e-3 * values[0]).sum())


def _signal(weight: torch.Tensor, landscape: QuarticLandscape) -> float:
    """How many dimensions of signal an embedding carries: the trace of its whitened B."""
    B, S = (weight @ matrix @ weight.T for matrix in (landscape.B, landscape.S))
    return float(QuarticLandscape(B, S).whitened_eigenvalues.sum())
