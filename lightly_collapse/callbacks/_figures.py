"""Spectra as figures for the loggers that take figures or images."""

import inspect
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightly_collapse.metrics import Reading


def takes_figures(logger: Any) -> bool:
    """Whether `log_figure` knows how to hand a figure to the logger."""
    experiment = getattr(logger, "experiment", None)
    return hasattr(logger, "log_image") or any(
        hasattr(experiment, name) for name in ("add_figure", "log_figure")
    )


def log_figure(logger: Any, name: str, figure: "Figure", step: int) -> None:
    """Hand a figure to a logger in the form that it takes.

    A `log_image` of Lightning's loggers (Weights & Biases) gets a PIL image; the experiment of
    TensorBoard, MLflow or Comet the figure.

    Raises:
        Exception: whatever the logger raises.
    """
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):  # TensorBoard
        experiment.add_figure(name, figure, global_step=step)
    elif hasattr(logger, "log_image"):
        parameters = inspect.signature(logger.log_image).parameters
        if "images" in parameters or "image" not in parameters:
            logger.log_image(key=name, images=[_image(figure)], step=step)
        else:
            logger.log_image(image=_image(figure), key=name, step=step)
    elif hasattr(logger, "run_id"):  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{name}/{step}.png")
    else:  # Comet
        experiment.log_figure(name, figure, step=step)


def _image(figure: "Figure") -> Any:
    from PIL import Image  # noqa: PLC0415, as matplotlib: only where a figure is drawn

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer)


def spectrum_figures(readings: Mapping[str, "Reading"], title: str) -> dict[str, "Figure"]:
    """A figure of the normalised spectrum of every layer that has one."""
    from lightly_collapse.report.pages.plots import log_lines  # noqa: PLC0415

    return {
        layer: log_lines(
            {layer: (reading.spectrum / reading.spectrum[0]).tolist()},
            "singular value / largest",
            title=title,
        )
        for layer, reading in readings.items()
        if reading.spectrum is not None
    }
