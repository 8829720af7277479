"""A layer's output as rows of samples, channels as dimensions."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightly_collapse.metrics.channels import ChannelAxis, channel_axis
from lightly_collapse.metrics.prefix_tokens import PrefixTokens

Tokens = Literal["auto", "cls", "patch", "mean", "all"]
"""Which positions of an output become rows; see `feature_rows` and `FeatureHooks`."""

# What models call the features among their outputs (transformers, DINOv2, timm, `encoded` of
# stable-pretraining), and data sets the images among their columns.
FEATURE_KEYS = (
    "last_hidden_state",
    "features",
    "x_norm_patchtokens",
    "hidden_state",
    "encoded",
    "out",
    "pooler_output",
    "logits",
    "pixel_values",
    "image",
    "images",
)


def feature_rows(
    output: Any,
    tokens: Tokens = "mean",
    channels: ChannelAxis | None = "auto",
    *,
    layer: nn.Module | None = None,
    model: nn.Module | None = None,
    prefix: PrefixTokens | None = None,
    detach: bool = True,
) -> Tensor:
    """A layer's output as a matrix: channels are dimensions, samples (and positions) are rows.

    Args:
        output: (n, c), or a tensor with any number of axes of positions besides: feature maps
            (n, c, h, w) or (n, h, w, c), sequences (n, tokens, c) or (n, c, length). Of a tuple,
            list, mapping or transformers' `ModelOutput` its features; see `first_tensor`.
        tokens: `mean` averages over the positions of a sample, one row a sample; `all` takes every
            position as a row. In a sequence with prefix tokens `mean` is that of the patches,
            `patch` takes every patch as a row and `cls` the class token. `auto` is `mean` here;
            `FeatureHooks` tells class token and patches apart.
        channels: `first` (axis 1), `last` or an axis; `auto` finds it from the layer, see
            `lightly_collapse.metrics.channels.channel_axis`.
        layer: the layer that gave the output.
        model: the model that holds the layer.
        prefix: the prefix tokens of a sequence, see `prefix_tokens`; none by default.
        detach: without the gradient.

    Returns:
        (rows, c).

    Raises:
        ValueError: if the output holds no tensor or one with less than two dimensions, `tokens` or
            `channels` is unknown, the axis of the channels cannot be told, or there is no class
            token to take.

    Examples:
        >>> feature_rows(torch.zeros(2, 8, 4, 4), channels="first").shape
        torch.Size([2, 8])
        >>> feature_rows(torch.zeros(2, 8, 4, 4), "all", layer=nn.Conv2d(3, 8, 1)).shape
        torch.Size([32, 8])
        >>> feature_rows(torch.zeros(2, 197, 768), "patch", "last", prefix=PrefixTokens(1)).shape
        torch.Size([392, 768])
    """
    check_tokens(tokens)
    x = first_tensor(output)
    x = x.detach() if detach else x
    if x.ndim < 2:
        raise ValueError(f"output must have a batch and a channel axis, got {tuple(x.shape)}")
    if x.ndim == 2 and channels in (None, "auto", "first", "last"):
        return x
    if channels in (None, "auto") and layer is None:
        raise ValueError(
            "channels must be given, or the layer that made the output: which axis of "
            f"{tuple(x.shape)} holds them cannot be told from its shape"
        )
    axis = channel_axis(layer or nn.Identity(), x.shape, model, channels)
    x = x.movedim(axis, -1)
    if x.ndim == 3 and axis in (2, -1) and prefix is not None:
        return _token_rows(x, tokens, prefix)
    if tokens == "cls":
        raise ValueError(
            f'tokens="cls" needs a sequence with a class token, got features {tuple(x.shape)}'
        )
    if tokens in ("all", "patch"):
        return x.flatten(0, -2)
    return _mean(x.flatten(1, -2)) if x.ndim > 2 else x


def _token_rows(x: Tensor, tokens: Tokens, prefix: PrefixTokens) -> Tensor:
    if tokens == "cls":
        if not prefix.has_class_token:
            raise ValueError(
                f'tokens="cls" needs a sequence with a class token, got tokens {tuple(x.shape)} '
                "of a model in which none was found"
            )
        return x[:, 0]
    if tokens == "all":
        return x.flatten(0, 1)
    patches = x[:, prefix.count :]
    if not patches.shape[1]:  # the class attention of CaiT gives the class token alone
        patches = x
    return patches.flatten(0, 1) if tokens == "patch" else _mean(patches)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))


def first_tensor(output: Any, name: str = "output") -> Tensor:
    """The features in what a module returned, or the images in what a data loader gave.

    Args:
        output: a tensor; a tuple or list, of which the first entry is taken; a mapping, such as
            transformers' `ModelOutput`, or a dataclass, of which `last_hidden_state`, `features`
            and others of such names are taken, the last of the `feature_maps`, or the only tensor.
        name: what it is called in the error.

    Returns:
        The tensor.

    Raises:
        ValueError: if there is none, or several and none has a known name.

    Examples:
        >>> first_tensor({"last_hidden_state": torch.zeros(2, 4), "pooler_output": None}).shape
        torch.Size([2, 4])
    """
    while not isinstance(output, Tensor):
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
            continue
        kind = type(output).__name__
        if is_dataclass(output) and not isinstance(output, Mapping):
            output = {field.name: getattr(output, field.name) for field in fields(output)}
        if not isinstance(output, Mapping):
            raise ValueError(f"{name} must be a tensor or begin with one, got {kind}")
        tensors = {str(k): v for k, v in output.items() if isinstance(v, Tensor)}
        known = [key for key in FEATURE_KEYS if key in tensors]
        if not known and isinstance(output.get("feature_maps"), (tuple, list)):
            output = output["feature_maps"][-1:]  # of transformers' backbones, the deepest
            continue
        if not known and len(tensors) != 1:
            raise ValueError(
                f"{name} must be a tensor, got {kind} with the tensors "
                f"{', '.join(tensors) or 'none'}; name an inner layer instead"
            )
        output = tensors[known[0]] if known else next(iter(tensors.values()))
    return output


def dinov2_tokens(output: Any) -> Tensor | None:
    """Class token and patches that DINOv2's own code gives apart, as one sequence.

    Args:
        output: of a model.

    Returns:
        (n, 1 + p, c), the class token first; None where the output is not of this form.

    Examples:
        >>> cls, patches = torch.ones(2, 4), torch.zeros(2, 9, 4)
        >>> dinov2_tokens({"x_norm_clstoken": cls, "x_norm_patchtokens": patches}).shape
        torch.Size([2, 10, 4])
    """
    if not isinstance(output, Mapping):
        return None
    cls, patches = output.get("x_norm_clstoken"), output.get("x_norm_patchtokens")
    if not isinstance(cls, Tensor) or not isinstance(patches, Tensor):
        return None
    return torch.cat([cls[:, None], patches], dim=1)


def check_tokens(tokens: str) -> None:
    """Raise a ValueError unless `tokens` is known."""
    known = get_args(Tokens)
    if tokens not in known:
        raise ValueError(f"tokens must be one of {', '.join(known)}, got {tokens!r}")
