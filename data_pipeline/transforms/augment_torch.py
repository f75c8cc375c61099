"""The photometric operators in torch, on a whole batch: for GPUs, and as the reference for `augment_cpu`.

On CUDA, torch.compile fuses the operators on single pixels, so that a batch is read and written twice instead
of about sixty times. For this every image goes through all operators; parameters that change nothing leave an
image as it is.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.transforms.columns import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    DROP,
    GAMMA,
    GREY,
    HUE,
    IDENTITY,
    KEY,
    NOISE,
    SATURATION,
    SHOT,
    SHUFFLE,
    SOLARIZE,
    TURN,
)
from data_pipeline.transforms.hue import turn_hue
from isotorus.device import numbers, to_device, without_autocast

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey; torchvision's, so that results equal those of its operators."""
KERNEL_SIGMAS = 3
"""Radius of the blur kernel in standard deviations; 99.7 % of a Gaussian lies within three."""

_BITS = 2**32 - 1
_STEP = 0x9E3779B9
"""2³² over the golden ratio: keys that follow each other start far apart (Knuth 1973)."""
_MEASURED = [GAMMA, NOISE, SHOT]
"""Columns of the operators of `measure`."""
_UNMEASURED = [IDENTITY[column] for column in _MEASURED]

log = logging.getLogger(__name__)

# True after torch.compile has failed once.
_broken = False


def apply(
    images: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float], colours: bool = True
) -> Tensor:
    """Augment images as `augment.apply` describes; `parameters` are on the CPU.

    `colours` says whether three channels are red, green and blue.
    """
    device, sigma = images.device, parameters[:, BLUR]
    center, scale = (numbers(device, *values) for values in (mean, std))
    values = to_device(parameters, device)
    with without_autocast(device):
        x = images.to(torch.float32).div_(torch.iinfo(images.dtype).max)
        x = _fused(colour if colours else contrast, x, values)
        blurred = sigma.nonzero().squeeze(1)
        if len(blurred):
            kernels = to_device(_kernels(sigma[blurred], limit=min(x.shape[2:]) - 1), device)
            rows = to_device(blurred, device)
            x = x.index_copy(0, rows, _blur(x.index_select(0, rows), kernels))
        measured = (parameters[:, _MEASURED] != parameters.new_tensor(_UNMEASURED)).any(1)
        if measured.any():
            rows = to_device(measured.nonzero().squeeze(1), device)
            chosen = x.index_select(0, rows), values.index_select(0, rows)
            x = x.index_copy(0, rows, _fused(measure, *chosen))
        x = _fused(finish, x, values, center, scale, colours)
        if parameters[:, DROP].any():
            channel = torch.arange(1, x.shape[1] + 1, device=device)
            x = x.masked_fill((channel == values[:, DROP, None])[..., None, None], 0)
        return x


def shuffle(images: Tensor, parameters: Tensor) -> Tensor:
    """Put the channels of some images (N, C, H, W) into the order that the parameters (N, P), on the CPU,
    decide. The result may share the memory of `images`.
    """
    keys = parameters[:, SHUFFLE].long()
    rows = keys.nonzero().squeeze(1)
    if not len(rows):
        return images
    # The order of numbers that look random is a random order.
    place = torch.arange(images.shape[1])
    order = _mixed(_mixed(place + (keys[rows] * _STEP)[:, None])).argsort(stable=True, dim=1)
    at, order = to_device(rows, images.device), to_device(order, images.device)
    return images.index_copy(0, at, images[at[:, None], order])


def colour(x: Tensor, parameters: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of images (N, C, H, W) in [0, 1], and convert some
    to grey.
    """
    if x.shape[1] != 3:
        return contrast(x, parameters)
    brightness, strength, saturation, hue, grey = _columns(
        parameters, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY
    )
    x = (x * brightness).clamp(0, 1)
    mean = _luma(x).mean((1, 2, 3), keepdim=True)
    x = mean.lerp(x, strength).clamp(0, 1)
    x = _luma(x).lerp(x, saturation).clamp(0, 1)
    x = torch.where(hue != 0, _shift_hue(x, hue), x)
    return torch.where(grey != 0, _luma(x), x)


def contrast(x: Tensor, parameters: Tensor) -> Tensor:
    """Change the brightness and contrast of images (N, C, H, W) in [0, 1], each channel by itself."""
    brightness, strength = _columns(parameters, BRIGHTNESS, CONTRAST)
    x = (x * brightness).clamp(0, 1)
    return x.mean((2, 3), keepdim=True).lerp(x, strength).clamp(0, 1)


def measure(x: Tensor, parameters: Tensor) -> Tensor:
    """Raise images (N, C, H, W) in [0, 1] to a power, and add noise of variance noise² + shot · x."""
    power, noise, shot = _columns(parameters, *_MEASURED)
    x = x**power
    deviation = (noise.square() + shot * x).sqrt()
    return (x + deviation * normal(parameters[:, KEY].long(), x[0].numel()).view_as(x)).clamp(0, 1)


def normal(keys: Tensor, count: int) -> Tensor:
    """Return standard normal numbers (N, count) that `keys` (N,) decide, by Box and Muller (1958)."""
    place = torch.arange(count, device=keys.device)
    first = _mixed(place + (keys * _STEP)[:, None])
    second = _mixed(first + _STEP)
    radius = (-2 * ((first >> 8).float().add(0.5) * 2.0**-24).log()).sqrt()
    return radius * (second.float() * (2 * math.pi * 2.0**-32)).cos()


def _mixed(x: Tensor) -> Tensor:
    """Return integers mixed to 32 bits that look random: Wellons' "lowbias32" of 2018."""
    x = x & _BITS
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _BITS
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _BITS
    return x ^ (x >> 16)


def finish(x: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, colours: bool = True) -> Tensor:
    """Solarize images, turn their hue if they are `colours`, and normalise them."""
    (threshold,) = _columns(parameters, SOLARIZE)
    x = torch.where(x >= threshold, 1 - x, x)
    if colours and x.shape[1] == 3:
        x = turn_hue(x, parameters[:, TURN])
    return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def _columns(parameters: Tensor, *columns: int) -> list[Tensor]:
    """Return columns of the parameters (N, P), each of shape (N, 1, 1, 1)."""
    return [parameters[:, column].view(-1, 1, 1, 1) for column in columns]


def _luma(x: Tensor) -> Tensor:
    """Return the grey (N, 1, H, W) of RGB images (N, 3, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue in HSV space (Smith 1978) by `turns` of the colour circle; value and chroma stay."""
    red, green, blue = x.split(1, dim=1)
    value = red.maximum(green).maximum(blue)
    chroma = value - red.minimum(green).minimum(blue)
    divisor = torch.where(chroma == 0, 1, chroma)
    from_green_or_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, from_green_or_blue) + 6 * turns
    # To RGB: value - chroma · clamp(min(k, 4 - k), 0, 1), with k = (sixths + 5, 3 or 1) mod 6.
    places = ((sixths + place).remainder(6) for place in (5, 3, 1))
    return torch.cat([value - chroma * k.minimum(4 - k).clamp(0, 1) for k in places], dim=1)


def _kernels(sigma: Tensor, limit: int) -> Tensor:
    """Return Gaussian kernels (N, taps) for sigmas (N,); each has a radius of 3 sigmas and at most `limit`.

    The widest kernel determines the number of taps, and the others are padded with zeros. So the pixels of an
    image do not depend on the other images in the batch.
    """
    radius = (KERNEL_SIGMAS * sigma).ceil().clamp(max=limit)
    widest = int(radius.max())
    taps = torch.arange(-widest, widest + 1).abs()
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= radius[:, None])
    return weights / weights.sum(1, keepdim=True)


def _blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Blur images (N, C, H, W) with separable kernels (N, taps); edges are reflected."""
    n, channels, height, width = x.shape
    planes = n * channels
    across = kernels.repeat_interleave(channels, dim=0).view(planes, 1, 1, -1)
    radius = kernels.shape[1] // 2
    y = F.pad(x.reshape(1, planes, height, width), (radius,) * 4, mode="reflect")
    y = F.conv2d(F.conv2d(y, across, groups=planes), across.transpose(2, 3), groups=planes)
    return y.view_as(x)


def _fused(function: Callable[..., Tensor], x: Tensor, *rest: Tensor | bool) -> Tensor:
    """Call `function`, compiled by torch.compile on CUDA unless that has failed."""
    global _broken
    if x.is_cuda and not _broken:
        try:
            return _compiled(function)(x, *rest)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # for example if there is no C compiler
            _broken = True
            log.warning(
                "torch.compile failed (%s): images are augmented uncompiled, which is slower; if this "
                "machine has no compiler, install gcc and g++, or set CC and CXX",
                str(error).split("\n")[0],
            )
    return function(x, *rest)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the compiled function."""
    return torch.compile(function, dynamic=False)
