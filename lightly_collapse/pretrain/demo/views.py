"""Random views of a whole batch of small images at once, each image with its own draw."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


class BatchedViews:
    """A random affine map, brightness and pixel noise, drawn for every image of a batch.

    The same augmentations as Lightly's multi-view transforms make image by image, for images so
    small that decoding and calling them one by one would take longer than the encoder.

    Args:
        degrees: rotation, uniform in [-degrees, degrees].
        translate: shift in each direction, uniform in [-translate, translate], as a share of the
            image's size.
        scale: lowest and highest magnification.
        shear: horizontal shear, uniform in [-shear, shear], in degrees.
        brightness: factor, uniform in [1 - brightness, 1 + brightness].
        noise: standard deviation of the Gaussian noise on every pixel.
        seed: seed of the draws; two objects with one seed give the same views.

    Examples:
        >>> views = BatchedViews(seed=0)
        >>> view0, view1 = views(torch.rand(8, 1, 16, 16)), views(torch.rand(8, 1, 16, 16))
        >>> view0.shape
        torch.Size([8, 1, 16, 16])
    """

    def __init__(
        self,
        degrees: float = 15.0,
        translate: float = 0.1,
        scale: tuple[float, float] = (0.8, 1.2),
        shear: float = 10.0,
        brightness: float = 0.4,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear
        self.brightness = brightness
        self.noise = noise
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Draw one view of every image.

        Args:
            images: (n, channels, height, width) in [0, 1], on the CPU.

        Returns:
            Views of the same shape and dtype.
        """
        n = images.shape[0]
        angle = self._uniform(n, -self.degrees, self.degrees) * math.pi / 180
        shear = (self._uniform(n, -self.shear, self.shear) * math.pi / 180).tan()
        size = 1 / self._uniform(n, *self.scale)
        cos, sin = angle.cos() * size, angle.sin() * size
        # grid_sample's coordinates span 2, from -1 to 1.
        x, y = (2 * self._uniform(n, -self.translate, self.translate) for _ in range(2))
        rows = [cos, shear * cos - sin, x, sin, shear * sin + cos, y]
        maps = torch.stack(rows, dim=1).view(n, 2, 3)
        grid = affine_grid(maps, list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, align_corners=False)
        light = self._uniform(n, 1 - self.brightness, 1 + self.brightness)
        noise = torch.randn(images.shape, generator=self._generator) * self.noise
        return moved * light[:, None, None, None] + noise

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return torch.rand(n, generator=self._generator) * (high - low) + low
