"""The image size and normalisation that a model was published with."""

from importlib.util import find_spec
from typing import Any

import torchvision

from lightly_collapse.io.images import DIGITS, IMAGENET, Normalization, Preparation
from lightly_collapse.io.models import LoadedModel

_SIZE = 224
_SMALL_SIZE = 32


def published_preparation(loaded: LoadedModel, small: bool = False) -> Preparation:
    """How images are prepared for a model of which no pretraining is known.

    The size is the only one that the model takes, or that of its published weights in torchvision
    or timm, or 224 pixels. The normalisation is that of the published weights, or ImageNet's.

    Args:
        loaded: the model.
        small: the images are the digits, of 8 x 8 pixels: 32 pixels (or the least that the
            published weights take) will do where the model takes any size, and they have their own
            normalisation.

    Returns:
        Size, normalisation and the reason.

    Examples:
        >>> from lightly_collapse.io.models import load_model
        >>> how = published_preparation(load_model("resnet18"))
        >>> how.image_size, how.reason
        (224, "the size of torchvision's published weights")
    """
    size, least, normalization, reason = _published(loaded)
    if loaded.image_size is not None:
        size, reason = loaded.image_size, "the only size that the model takes"
    elif small:
        size, reason = max(_SMALL_SIZE, least), "enough for the digits' 8 x 8"
    return Preparation(size, DIGITS if small else normalization, reason)


def _published(loaded: LoadedModel) -> tuple[int, int, Normalization, str]:
    """Size, least size, normalisation of the published weights, and whose they are."""
    name = loaded.arch
    if name in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        transform = weights.transforms()
        return (
            transform.crop_size[0],
            max(weights.meta.get("min_size", (1, 1))),
            Normalization(tuple(transform.mean), tuple(transform.std)),
            "the size of torchvision's published weights",
        )
    timm_name = name.removeprefix("timm/")
    if find_spec("timm") is not None:
        import timm  # noqa: PLC0415
        from timm.data.config import resolve_model_data_config  # noqa: PLC0415

        if timm.is_model(timm_name):
            config: Any = resolve_model_data_config(loaded.model)  # type: ignore[no-untyped-call]
            return (
                max(config["input_size"][1:]),
                1,
                Normalization(tuple(config["mean"]), tuple(config["std"])),
                "the size in timm's configuration",
            )
    return _SIZE, 1, IMAGENET, "the default"
