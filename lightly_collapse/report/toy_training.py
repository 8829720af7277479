"""Contents of the `toy` command's pages that set a prediction beside networks trained on digits."""

from collections.abc import Callable
from typing import Any

import torch

from lightly_collapse.report.pages.toy import comparison_figure, relu_figure
from lightly_collapse.theory.against_training import compare_on_digits
from lightly_collapse.theory.relu_layer import compare_relu_on_digits, spectrum_error

OnProgress = Callable[[int, int], None]
"""Called with (parts of the work done, parts)."""

Content = dict[str, Any]
"""`title`, `verdict`, `figures` (each a figure and its caption), `table` and `record`."""


def digits_content(seeds: range, options: dict[str, Any], progress: OnProgress) -> Content:
    """Linear encoders trained on digits beside the landscape and the linear dynamics.

    Args:
        seeds: the first is taken.
        options: `steps`, where given.
        progress: of the work.
    """
    found = compare_on_digits(**options, seed=seeds[0], progress=progress)
    worst = max(c.largest_error() for c in found)
    plain = [c.correlation(finite_time=False) for c in found]
    timed = [c.correlation() for c in found]
    rows = [
        [
            f"{c.noise:g}",
            f"{100 * c.largest_error():.1f} %",
            f"{int((c.spectral > 1e-2 * c.spectral[0]).sum())}",
            f"{c.correlation(finite_time=False):.3f}",
            f"{c.correlation():.3f}",
        ]
        for c in found
    ]
    return {
        "title": "Prediction beside training, on handwritten digits",
        "verdict": [
            "Spectral contrastive loss, trained to convergence: the largest error of an eigenvalue "
            f"above 1e-2 of the largest is {100 * worst:.1f} %, over {len(found)} strengths.",
            f"InfoNCE, stopped: the log spectra correlate by {min(plain):.2f} to {max(plain):.2f} "
            f"with the landscape's, and by {min(timed):.3f} to {max(timed):.3f} with those of the "
            "linear dynamics run to the training time.",
        ],
        "figures": [
            (
                comparison_figure(found),
                "Eigenvalues of the clean embedding's covariance, each divided by its largest: "
                "prediction (lines) and training (dots). Noise on a random half of the directions "
                "of pixel space.",
            )
        ],
        "table": (
            ["noise", "largest error, spectral loss", "eigenvalues compared",
             "correlation, InfoNCE and landscape", "InfoNCE and linear dynamics"],
            rows,
        ),
        "record": {
            "comparisons": [
                {
                    "noise": c.noise,
                    "predicted": c.predicted.tolist(),
                    "spectral_contrastive": c.spectral.tolist(),
                    "infonce": None if c.infonce is None else c.infonce.tolist(),
                    "finite_time": None if c.finite_time is None else c.finite_time.tolist(),
                }
                for c in found
            ]
        },
    }  # fmt: skip


def relu_layer_content(seeds: range, options: dict[str, Any], progress: OnProgress) -> Content:
    """Networks with one ReLU layer trained on digits beside three landscapes.

    Args:
        seeds: the first is taken.
        options: `steps`, where given.
        progress: of the work.
    """
    found = compare_relu_on_digits(**options, seed=seeds[0], progress=progress)
    pairs = {
        "last layer trained, random hidden layer": ("from_start", "last_layer"),
        "all trained, trained hidden layer": ("from_end", "trained"),
        "all trained, random hidden layer": ("from_start", "trained"),
        "all trained, pixels": ("from_pixels", "trained"),
    }
    errors = {
        label: [spectrum_error(getattr(c, predicted), getattr(c, trained)) for c in found]
        for label, (predicted, trained) in pairs.items()
    }
    last, end, start, pixels = (_percent(values) for values in errors.values())
    return {
        "title": "The landscape and a network with one ReLU layer",
        "verdict": [
            "Given its hidden layer, the network ends near where the landscape says: the spectrum "
            f"is off by {last} where the last layer alone is trained, predicted before training, "
            f"and by {end} where all is, predicted from the hidden layer after it.",
            "What the hidden layer becomes the theory does not say: from the random hidden layer "
            f"the spectrum is off by {start}, and by {pixels} from the pixels, which is the theory "
            "of a linear network.",
        ],
        "figures": [
            (
                relu_figure(found),
                "Eigenvalues of E z zʹᵀ, z and zʹ the embeddings of two views of an image: "
                "landscapes (lines) and trained networks (dots), at several strengths of the "
                "noise on every pixel. An error is the sum of absolute differences over the sum of "
                "the trained eigenvalues.",
            )
        ],
        "table": (
            ["noise", *(f"error: {label}" for label in errors)],
            [
                [f"{c.noise:g}", *(f"{100 * values[k]:.1f} %" for values in errors.values())]
                for k, c in enumerate(found)
            ],
        ),
        "record": {
            "comparisons": [
                {
                    name: value.tolist() if isinstance(value, torch.Tensor) else value
                    for name, value in vars(c).items()
                }
                for c in found
            ]
        },
    }


def _percent(values: list[float]) -> str:
    low, high = (f"{100 * value:.0f}" for value in (min(values), max(values)))
    return f"{low} %" if low == high else f"{low} to {high} %"
