"""Photometric augmentation, batched on the images' device, from one small parameter vector a view.

Drawing (numpy, in the workers) is apart from applying (torch, in one pass over the batch), so the same
parameters give the same pixels on any device, to rounding. Each operator is the one of the same name
in `torchvision.transforms.v2.functional` on float images.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from data_pipeline.views import Interval

PARAMETERS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarize")
"""Columns: three factors (1 = as it is), hue shift in turns (0), 1 for grey (0), sigma in pixels
(0 = sharp), threshold from which pixels are inverted (2 = none)."""
IDENTITY = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0)

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights, so that its operators are matched
_KERNEL_SIGMAS = 3  # a Gaussian holds 99.7 % of its weight within three sigmas

Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(BaseModel):
    """The augmentations of the LeJEPA recipe; on greyscale images saturation, hue and grey do nothing."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    horizontal_flip: Probability = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: Probability = 0.0
    """Probability of mirroring top and bottom; .5 suits images without an up, e.g. from microscopes."""
    jitter_probability: Probability = 0.8
    """Probability of changing brightness, contrast, saturation and hue, in this order."""
    brightness: float = Field(0.4, ge=0)
    """Factor on the pixels, uniform in 1 ± this."""
    contrast: float = Field(0.4, ge=0)
    """Factor on the distance to the image's mean grey, uniform in 1 ± this."""
    saturation: float = Field(0.2, ge=0)
    """Factor on the distance to the pixel's own grey, uniform in 1 ± this."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Turn of the colour circle, uniform in ± this; .5 reaches the complement."""
    grey_probability: Probability = 0.2
    """Probability of dropping colour."""
    blur_probability: Probability = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: Interval = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize_probability: Probability = 0.2
    """Probability of inverting bright pixels."""
    solarize_threshold: float = Field(0.5, ge=0, le=1)
    """Pixels from here up are inverted, on the scale where white is 1."""


def draw(rng: np.random.Generator, config: AugmentConfig) -> NDArray[np.float32]:
    """The parameters (P,) of one view, in the order of `PARAMETERS`."""
    chance, amount = rng.random(4), rng.random(5)  # always as many, so that views do not shift each other
    parameters = np.array(IDENTITY, dtype=np.float32)
    if chance[0] < config.jitter_probability:
        for column, strength in enumerate((config.brightness, config.contrast, config.saturation)):
            low = max(1 - strength, 0)
            parameters[column] = low + amount[column] * (1 + strength - low)
        parameters[3] = config.hue * (2 * amount[3] - 1)
    if chance[1] < config.grey_probability:
        parameters[4] = 1
    if chance[2] < config.blur_probability:
        low, high = config.blur_sigma
        parameters[5] = low + amount[4] * (high - low)
    if chance[3] < config.solarize_probability:
        parameters[6] = config.solarize_threshold
    return parameters


@torch.no_grad()
def apply(images: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Augment uint8 `images` (N, C, H, W), C 1 or 3, by `parameters` (N, P) → float32, normalised.

    The result is on the images' device. Leave the parameters on the CPU: what no image asks for is
    left out, and deciding that on the host costs no device synchronisation.
    """
    brightness, contrast, saturation, hue, grey, sigma, threshold = parameters.cpu().unbind(1)
    with torch.autocast(images.device.type, enabled=False):
        x = images.to(torch.float32).div_(255)
        _some(_brightness_contrast, x, (brightness != 1) | (contrast != 1), brightness, contrast)
        if x.shape[1] == 3:
            _some(_saturation, x, saturation != 1, saturation)
            _some(_hue, x, hue != 0, hue)
            _some(_grey, x, grey != 0)
        _some(_blur, x, sigma > 0, _kernels(sigma, limit=min(x.shape[2:]) - 1))
        _some(_solarize, x, threshold <= 1, threshold)
        center, scale = (
            torch.tensor(s, dtype=torch.float32).to(x.device).view(-1, 1, 1) for s in (mean, std)
        )
        return x.sub_(center).div_(scale)


def _some(operator: Callable[..., Tensor], x: Tensor, wanted: Tensor, *columns: Tensor) -> None:
    """Apply `operator(images, *columns)` in place to those images of `x` for which `wanted` is true.

    `wanted` (N,) and the columns (N, …) are on the host; the operator gets them as (n, 1, 1, …).
    """
    rows = wanted.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    chosen = [column[rows].view(len(rows), 1, 1, -1).to(x.device, non_blocking=True) for column in columns]
    rows = rows.to(x.device, non_blocking=True)
    x.index_copy_(0, rows, operator(x.index_select(0, rows), *chosen))


def _luma(x: Tensor) -> Tensor:
    """The grey (N, 1, H, W) of (N, C, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _grey(x: Tensor) -> Tensor:
    return _luma(x).expand_as(x)


def _brightness_contrast(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    x = (x * brightness).clamp_(0, 1)
    return _luma(x).mean((1, 2, 3), keepdim=True).lerp(x, contrast).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _luma(x).lerp(x, factor).clamp_(0, 1)


def _hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space (Smith 1978), keeping value and chroma."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    divisor = torch.where(chroma == 0, 1, chroma)
    red, green, blue = x.split(1, dim=1)
    from_green_or_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, from_green_or_blue) + 6 * turns
    # Back to RGB without cases: the value less a share of the chroma, by the channel's place on the circle.
    k = (torch.tensor([5.0, 3.0, 1.0]).to(x.device).view(3, 1, 1) + sixths).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def _kernels(sigma: Tensor, limit: int) -> Tensor:
    """Gaussian kernels (N, taps) for sigmas (N,), each cut at its own three sigmas and at `limit`.

    The widest decides the number of taps and the others are padded with zeros, so that an image's
    pixels do not depend on what else is in the batch.
    """
    radius = (_KERNEL_SIGMAS * sigma).ceil().clamp(max=limit)
    widest = int(radius.max())
    taps = torch.arange(-widest, widest + 1).abs()
    weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2) * (taps <= radius[:, None])
    return weights / weights.sum(1, keepdim=True)


def _blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Separable blur of images (n, C, H, W) by kernels (n, 1, 1, taps); edges are reflected."""
    n, channels, height, width = x.shape
    planes = n * channels
    across = kernels.repeat_interleave(channels, dim=0)
    radius = kernels.shape[-1] // 2
    y = F.pad(x.reshape(1, planes, height, width), (radius,) * 4, mode="reflect")
    y = F.conv2d(F.conv2d(y, across, groups=planes), across.transpose(2, 3), groups=planes)
    return y.view_as(x)


def _solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(x >= threshold, 1 - x, x)
