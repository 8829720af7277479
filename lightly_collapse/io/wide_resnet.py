"""Wide residual networks for images of 32 pixels."""

import torch
from torch import Tensor, nn
from typing_extensions import override


class _Block(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        y: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return y + shortcut


class WideResNet(nn.Module):
    """WRN-depth-widen without its classifier: pre-activation blocks in three stages.

    Args:
        depth: number of convolutional layers, 6 n + 4.
        widen: factor on the 16, 32 and 64 filters of the stages.

    Raises:
        ValueError: if the depth is not 6 n + 4 or `widen` is not positive.

    Source: Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146, table 1.

    Examples:
        >>> model = WideResNet(10, 1)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(self, depth: int, widen: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4, at least 10, got {depth}")
        if widen < 1:
            raise ValueError(f"widen must be at least 1, got {widen}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        inputs = 16
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            outputs = filters * widen
            blocks = [_Block(inputs, outputs, stride)]
            blocks += [_Block(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.feature_dim = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Representations (n, feature_dim) of images (n, 3, height, width)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return torch.relu(self.bn(x)).mean(dim=(2, 3))
