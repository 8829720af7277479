"""Whether a network may be trained with its channels last."""

import torch
from torch import nn

_BLOCK = 16  # channels of oneDNN's kernels with AVX-512; 8 with AVX2


def is_safe_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether a training with the channels last stays within its memory.

    On x86 processors oneDNN writes past the end of its workspace in the weight gradient of a
    strided 1x1 convolution of fewer input channels than its kernels' block, where the images are
    stored channels last (https://github.com/uxlfoundation/oneDNN/issues/6035; torch 2.14 has it).
    The process then crashes, or gradients differ from run to run.

    Args:
        model: the network.
        device: where it is trained.

    Returns:
        False on a CPU for a network that holds such a convolution, as a ResNet narrower than 16.

    Examples:
        >>> is_safe_channels_last(nn.Conv2d(8, 16, 1, stride=2), torch.device("cpu"))
        False
        >>> is_safe_channels_last(nn.Conv2d(64, 128, 1, stride=2), torch.device("cpu"))
        True
    """
    return device.type != "cpu" or not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < _BLOCK
        for layer in model.modules()
    )
