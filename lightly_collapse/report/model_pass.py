"""One pass of images through a model, here or on a worker: what is measured and how."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightly_collapse.io.image_batches import ImageFolderLoader
from lightly_collapse.metrics.features import Tokens
from lightly_collapse.report.embedding_totals import SketchSettings
from lightly_collapse.report.feature_pass import FeaturePass, evaluating
from lightly_collapse.report.model_totals import ModelTotals
from lightly_collapse.report.progress import with_batch_progress


@dataclass(frozen=True)
class ModelPass:
    """The model, and the arguments of `measure` that say what is taken from a batch.

    Attributes:
        model: maps images to representations; used in evaluation mode and left as it was.
        settings: of the sketches.
        layers: names of the hidden layers.
        needs_output: whether the model's output must be a tensor.
        head: from representations to the embedding.
        tokens: as for `measure`.
        channels: as for `measure`.
        reference: as for `measure`.
        normalize: as for `measure`.
    """

    model: nn.Module
    settings: SketchSettings
    layers: Sequence[str]
    needs_output: bool = True
    head: Callable[[Tensor], Tensor] | None = None
    tokens: Tokens = "auto"
    channels: int | Mapping[str, int] | None = None
    reference: nn.Module | None = None
    normalize: bool = False

    def totals(self) -> ModelTotals:
        """The state before the first image."""
        # A layer may be measured as its class token and as its patches.
        return ModelTotals(self.settings, 2 * len(self.layers) + 2, self.normalize)

    def over(
        self,
        loader: Iterable[Any],
        device: torch.device,
        *,
        labelled: bool = False,
        first: int = 0,
        progress: bool = False,
    ) -> tuple[ModelTotals, tuple[Tensor, Tensor]]:
        """Measure all batches.

        Args:
            loader: of images.
            device: where to compute.
            labelled: whether the representations and labels are wanted.
            first: number of the first image in the data that the loader is a part of.
            progress: show a progress bar on standard error.

        Returns:
            What was measured, on the CPU; representations and labels, or nothing twice.

        Raises:
            EmptyDataError: if there is no batch.
            ValueError: as `measure`.
        """
        totals = self.totals()

        def number(seen: int) -> int:
            return loader.start if isinstance(loader, ImageFolderLoader) else first + seen

        with evaluating(self.model, device):
            run = self._pass(totals)
            batches = with_batch_progress(loader, progress)
            features = run.over(batches, device, labelled, number)
            totals.add_dense(run.dense_totals())
        return totals.to(torch.device("cpu")), features

    def labelled(self, loader: Iterable[Any], device: torch.device) -> tuple[Tensor, Tensor]:
        """The representations and labels of training images, which are not measured."""
        with evaluating(self.model, device):
            return self._pass(self.totals()).labelled(loader, device)

    def _pass(self, totals: ModelTotals) -> FeaturePass:
        return FeaturePass(
            self.model,
            self.layers,
            self.needs_output,
            totals.take,
            self.head,
            self.tokens,
            self.channels,
            self.reference,
            totals.begin,
        )
