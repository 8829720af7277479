"""Views: batched on the training device for small images, Lightly's in workers for large ones."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightly.transforms.dino_transform import DINOViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad
from torchvision.transforms import v2

# Rec. 601 luma, as torchvision's rgb_to_grayscale has it.
_LUMA = (0.2989, 0.587, 0.114)
_BLUR_SIGMA = (0.1, 2.0)


_SOLARIZED = 0.2  # of BYOL's second views


@dataclass(frozen=True)
class ViewSettings:
    """How views of an image are drawn.

    Attributes:
        min_scale: smallest share of the image's area that a crop shows; a crop of a global view
            shows up to the whole image.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        jitter: a factor on the four strengths of the colour jitter.
        brightness: strength b; with s = jitter, brightness changes by a factor in
            [1 - b s, 1 + b s].
        contrast: likewise.
        saturation: likewise.
        hue: strength h; the hue is shifted by up to h s of the circle.
        jitter_probability: probability that the colours are jittered at all.
        gray: probability of a grey image.
        blur: probability of a Gaussian blur, of the first and of the second view.
        solarize: probability that pixels above one half are inverted, of the first and of the
            second view.
        noise: standard deviation of Gaussian noise on every pixel, whose range is [0, 1].
        local_crops: how many small views are drawn besides (SwAV, DINO).
        local_scale: smallest and largest share of the area that a small view shows.
        local_size: height and width of a small view; None for half the image's.
    """

    min_scale: float = 0.08
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter_probability: float = 0.8
    gray: float = 0.2
    blur: tuple[float, float] = (0.5, 0.5)
    solarize: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    local_crops: int = 0
    local_scale: tuple[float, float] = (0.05, 0.14)
    local_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"views.min_scale must be in (0, 1], got {self.min_scale}")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            strength = getattr(self, name)
            if not (self.jitter >= 0 and strength >= 0 and self.jitter * strength <= most):
                raise ValueError(
                    f"views.jitter times views.{name} must be in [0, {most}], got {self.jitter} "
                    f"times {strength}"
                )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"views.noise must be finite and not negative, got {self.noise}")
        if self.local_crops < 0:
            raise ValueError(f"views.local_crops must not be negative, got {self.local_crops}")
        for name in ("flip", "vertical_flip", "jitter_probability", "gray", "blur", "solarize"):
            value = getattr(self, name)
            if any(not 0 <= p <= 1 for p in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"views.{name} must be a probability in [0, 1], got {value}")
        low, high = self.local_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"views.local_scale must be two increasing shares in (0, 1], got {low}, {high}"
            )

    @property
    def stronger_steps(self) -> tuple[str, ...]:
        """The random steps that are stronger than in the published views of SimCLR and BYOL.

        Examples:
            >>> ViewSettings(noise=0.5, min_scale=0.01).stronger_steps
            ('crop', 'noise')
        """
        simclr = ViewSettings()
        jitter = ("brightness", "contrast", "saturation", "hue")
        stronger = {
            "crop": self.min_scale < simclr.min_scale,
            "colour jitter": self.jitter_probability > simclr.jitter_probability
            or any(self.jitter * getattr(self, n) > getattr(simclr, n) for n in jitter),
            "gray": self.gray > simclr.gray,
            "solarize": max(self.solarize) > _SOLARIZED,
            "noise": self.noise > 0,
        }
        return tuple(name for name, is_stronger in stronger.items() if is_stronger)

    def random_steps(self) -> dict[str, dict[str, Any]]:
        """The random steps that are on: from a name to the settings that switch it off.

        Examples:
            >>> ViewSettings(jitter=0.0, gray=0.0, blur=(0.0, 0.0)).random_steps()
            {'crop': {'min_scale': 1.0}, 'flip': {'flip': 0.0}}
        """
        off: dict[str, dict[str, Any]] = {
            "crop": {"min_scale": 1.0},
            "flip": {"flip": 0.0},
            "vertical flip": {"vertical_flip": 0.0},
            "colour jitter": {"jitter": 0.0},
            "gray": {"gray": 0.0},
            "blur": {"blur": (0.0, 0.0)},
            "solarize": {"solarize": (0.0, 0.0)},
            "noise": {"noise": 0.0},
        }
        return {
            name: settings
            for name, settings in off.items()
            if any(getattr(self, key) != value for key, value in settings.items())
        }


@dataclass(frozen=True)
class _View:
    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float


def _views(settings: ViewSettings, size: int, global_views: int) -> list[_View]:
    views = [
        _View(size, (settings.min_scale, 1.0), settings.blur[i], settings.solarize[i])
        for i in range(global_views)
    ]
    local = _View(settings.local_size or size // 2, settings.local_scale, settings.blur[0], 0.0)
    return views + [local] * settings.local_crops


def worker_views(
    settings: ViewSettings,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    global_views: int = 2,
) -> MultiViewTransform:
    """Lightly's transform of one image into its views, for the data loader's workers.

    Args:
        settings: how they are drawn.
        size: height and width of a global view.
        mean: of the colours, in [0, 1].
        std: their standard deviation.
        global_views: how many large views are drawn.

    Returns:
        A callable from a PIL image to a list of (3, height, width) tensors.
    """
    transforms = [
        DINOViewTransform(
            crop_size=view.size,
            crop_scale=view.scale,
            hf_prob=settings.flip,
            vf_prob=settings.vertical_flip,
            cj_prob=settings.jitter_probability,
            cj_strength=settings.jitter,
            cj_bright=settings.brightness,
            cj_contrast=settings.contrast,
            cj_sat=settings.saturation,
            cj_hue=settings.hue,
            random_gray_scale=settings.gray,
            gaussian_blur=view.blur,
            sigmas=_BLUR_SIGMA,
            solarization_prob=view.solarize,
            normalize={"mean": list(mean), "std": list(std)},
        )
        for view in _views(settings, size, global_views)
    ]
    if settings.noise > 0:
        noise = _Noise([settings.noise / s for s in std])
        transforms = [v2.Compose([transform, noise]) for transform in transforms]
    return MultiViewTransform(transforms)


class _Noise:
    """Gaussian noise on a normalised image, with a standard deviation for each channel."""

    def __init__(self, std: Sequence[float]) -> None:
        self._std = torch.tensor(std)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        return image + self._std * torch.randn_like(image)


def evaluation_view(size: int, normalization: Callable[[Tensor], Tensor]) -> v2.Compose:
    """The transform of one image for evaluation: its centre, neither augmented nor mirrored.

    Args:
        size: height and width, in pixels.
        normalization: of the colours.

    Returns:
        A callable from a PIL image to a (3, size, size) tensor.
    """
    # 256 for 224, the published evaluation crop.
    return v2.Compose(
        [
            v2.Resize(round(size * 8 / 7)),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            normalization,
        ]
    )


class DeviceViews:
    """The same views of a whole batch at once, on its own device, every image with its own draws.

    torchvision's v2 transforms draw once for a whole batch, so that all its images would be changed
    alike. Differences from the transforms one by one: brightness,
    contrast, saturation and hue are applied in that order rather than in a random one, crops are
    not rounded to whole pixels, and a crop that is made smaller is not antialiased. Random numbers
    come from the device's global generator.

    Args:
        settings: how they are drawn.
        size: height and width of a global view.
        global_views: how many large views are drawn.

    Examples:
        >>> views = DeviceViews(ViewSettings(local_crops=1), size=32)
        >>> [tuple(v.shape) for v in views(torch.rand(8, 3, 32, 32))]
        [(8, 3, 32, 32), (8, 3, 32, 32), (8, 3, 16, 16)]
    """

    def __init__(self, settings: ViewSettings, size: int, global_views: int = 2) -> None:
        self._settings = settings
        self._views = _views(settings, size, global_views)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Draw every view of every image.

        Args:
            images: (n, 3, height, width) in [0, 1].

        Returns:
            One (n, 3, size, size) tensor a view, in [0, 1] but for the noise.
        """
        return [self._draw(images, view) for view in self._views]

    def _draw(self, images: Tensor, view: _View) -> Tensor:
        s = self._settings
        n, device = len(images), images.device
        x = crop_and_flip(images, *_boxes(n, view.scale, s.flip, device), view.size)
        if s.vertical_flip > 0:
            chosen = _chosen(n, s.vertical_flip, device)
            x[chosen] = x[chosen].flip(-2)
        if s.jitter > 0 and s.jitter_probability > 0:
            chosen = _chosen(n, s.jitter_probability, device)
            x[chosen] = _jitter(x[chosen], s)
        if s.gray > 0:
            chosen = _chosen(n, s.gray, device)
            x[chosen] = grayscale(x[chosen]).expand(-1, 3, -1, -1)
        if view.blur > 0:
            chosen = _chosen(n, view.blur, device)
            x[chosen] = blur(x[chosen], _uniform(len(chosen), *_BLUR_SIGMA, device))
        if view.solarize > 0:
            chosen = _chosen(n, view.solarize, device)
            x[chosen] = torch.where(x[chosen] >= 0.5, 1 - x[chosen], x[chosen])
        if s.noise > 0:
            x = x + s.noise * torch.randn_like(x)
        return x


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(n, device=device) * (high - low) + low


def _chosen(n: int, probability: float, device: torch.device) -> Tensor:
    return (torch.rand(n, device=device) < probability).nonzero()[:, 0]


def _boxes(
    n: int, scale: tuple[float, float], flip: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Centres and half sizes in [-1, 1], drawn as RandomResizedCrop does: ten tries, or all."""
    tries = 10
    area = _uniform(n * tries, *scale, device)
    ratio = _uniform(n * tries, math.log(3 / 4), math.log(4 / 3), device).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).view(n, tries, 2)
    fits = (sides <= 1).all(dim=-1)
    first = fits.int().argmax(dim=1)
    half = torch.where(
        fits.any(dim=1, keepdim=True), sides[torch.arange(n, device=device), first], 1.0
    )
    centre = (2 * torch.rand(n, 2, device=device) - 1) * (1 - half)
    mirrored = torch.rand(n, device=device) < flip
    half = torch.stack([torch.where(mirrored, -half[:, 0], half[:, 0]), half[:, 1]], dim=1)
    return centre, half


def crop_and_flip(images: Tensor, centre: Tensor, half: Tensor, size: int) -> Tensor:
    """Cut a box out of every image and resize it bilinearly.

    Args:
        images: (n, channels, height, width).
        centre: (n, 2) x and y of the box's centre; the image spans [-1, 1].
        half: (n, 2) half its width and height, in the same unit; a negative width mirrors.
        size: height and width of the result.

    Returns:
        (n, channels, size, size).
    """
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = half[:, 0], half[:, 1]
    theta[:, :, 2] = centre
    grid = affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _jitter(x: Tensor, settings: ViewSettings) -> Tensor:
    n, device = len(x), x.device
    brightness, contrast, saturation = (
        _uniform(n, 1 - settings.jitter * strength, 1 + settings.jitter * strength, device)
        for strength in (settings.brightness, settings.contrast, settings.saturation)
    )
    hue = settings.jitter * settings.hue
    shift = _uniform(n, -hue, hue, device)
    x = scale_contrast(scale_brightness(x, brightness), contrast)
    return shift_hue(scale_saturation(x, saturation), shift)


def grayscale(x: Tensor) -> Tensor:
    """Luma of (n, 3, height, width) colours, as (n, 1, height, width)."""
    r, g, b = x.unbind(dim=1)
    return (_LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b).unsqueeze(1)


def scale_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Each of (n, 3, height, width) colours times its image's factor, clipped to [0, 1]."""
    return (x * factor[:, None, None, None]).clamp(0, 1)


def scale_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend every image with its own mean luma; a factor of 1 changes nothing."""
    mean = grayscale(x).mean(dim=(1, 2, 3), keepdim=True)
    return (mean + (x - mean) * factor[:, None, None, None]).clamp(0, 1)


def scale_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend every image with its luma; a factor of 1 changes nothing."""
    gray = grayscale(x)
    return (gray + (x - gray) * factor[:, None, None, None]).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of (n, 3, height, width) colours by (n,) shares of the circle, in HSV."""
    value, high = x.max(dim=1)
    chroma = value - x.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1)
    r, g, b = x.unbind(dim=1)
    sector = torch.where(
        high == 0, (g - b) / safe, torch.where(high == 1, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sector = sector + 6 * shift[:, None, None]
    # f(n) = V - C max(0, min(k, 4 - k, 1)), k = (n + H / 60) mod 6, for n = 5, 3, 1.
    out = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = (sector + n) % 6
        out[:, channel] = value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
    return out


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (n, channels, height, width), every image with its own of (n,) sigmas."""
    n, channels, height, width = x.shape
    if n == 0:
        return x
    radius = max(1, min(height, width) // 20)
    t = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = pad(x, [radius] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    flat = conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.view_as(x)
