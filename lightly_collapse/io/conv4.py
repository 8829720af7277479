"""Conv-4, the small convolutional network of few-shot learning."""

from torch import nn


class Conv4(nn.Sequential):
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 max pooling.

    The positions that are left are averaged. Images need at least 16 pixels in each direction.

    Args:
        width: filters of every convolution; 64 in the paper.

    Source: Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016.

    Examples:
        >>> import torch
        >>> Conv4(width=32)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 32])
    """

    def __init__(self, width: int = 64) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for inputs in (3, width, width, width)
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_dim = width
