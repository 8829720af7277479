"""The report of one model: its record, which can also be drawn."""

import os
from dataclasses import dataclass

from matplotlib.figure import Figure

from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.spectra import TrainingSpectra
from lightly_collapse.report.pages.measure import measure_page, spectrum_plot
from lightly_collapse.report.records import ModelRecord


@dataclass(frozen=True)
class CollapseReport(ModelRecord):
    """What was measured of one model; made by `measure` or read by `load`.

    Attributes:
        name: what the model is called in tables and figures.
        layers: the measured layers, the model's output first.
        weights: the weights of the model.
        settings: how it was measured, such as `collapse_rtol` and `lid_k`.
        source: what was measured: model, checkpoint, data, as far as known.
        notes: what a reader must know, such as images that could not be read.
        accuracy: of classifiers on the frozen representation, in [0, 1]: `knn` and `linear`; empty
            where there were no labels.
    """

    def plot(self) -> Figure:
        """The centred spectrum of every layer, divided by its largest singular value."""
        return spectrum_plot(self)

    def to_html(
        self, path: str | os.PathLike[str], training: TrainingSpectra | None = None
    ) -> None:
        """Write a self-contained page.

        Args:
            path: the file.
            training: spectra over the training that made the model, as a monitor recorded them:
                the page shows them with a slider.

        Raises:
            OSError: if it cannot be written.
        """
        atomic_write(path, measure_page(self, training).encode())
