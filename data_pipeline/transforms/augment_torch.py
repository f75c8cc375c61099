"""The photometric operators in torch, on the whole batch: for GPUs, and the reference for `augment_cpu`.

On CUDA the operators on single pixels are fused by torch.compile, so that a batch is read and written
twice rather than sixty times. Hence every image goes through all of them, with parameters that change
nothing where it is to stay as it is.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights, so that its operators are matched."""
KERNEL_SIGMAS = 3
"""A Gaussian holds 99.7 % of its weight within three sigmas."""

log = logging.getLogger(__name__)

# Set when torch.compile turns out not to work.
_broken = False


def apply(images: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """See `augment.apply`; `parameters` are on the CPU."""
    device, sigma = images.device, parameters[:, 5]
    center, scale = (torch.tensor(s, dtype=torch.float32).to(device, non_blocking=True) for s in (mean, std))
    values = parameters.to(device, non_blocking=True)
    with torch.autocast(device.type, enabled=False):
        x = images.to(torch.float32).div_(torch.iinfo(images.dtype).max)
        x = _fused(colour, x, values)
        blurred = sigma.nonzero().squeeze(1)
        if len(blurred):
            kernels = _kernels(sigma[blurred], limit=min(x.shape[2:]) - 1).to(device, non_blocking=True)
            rows = blurred.to(device, non_blocking=True)
            x = x.index_copy(0, rows, _blur(x.index_select(0, rows), kernels))
        return _fused(finish, x, values, center, scale)


def colour(x: Tensor, parameters: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue and grey of images (N, C, H, W) in [0, 1]."""
    columns = (column.view(-1, 1, 1, 1) for column in parameters[:, :5].unbind(1))
    brightness, contrast, saturation, hue, grey = columns
    x = (x * brightness).clamp(0, 1)
    mean = _luma(x).mean((1, 2, 3), keepdim=True) if x.shape[1] == 3 else x.mean((2, 3), keepdim=True)
    x = mean.lerp(x, contrast).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    x = _luma(x).lerp(x, saturation).clamp(0, 1)
    x = torch.where(hue != 0, _shift_hue(x, hue), x)
    return torch.where(grey != 0, _luma(x), x)


def finish(x: Tensor, parameters: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Solarise and normalise."""
    threshold = parameters[:, 6].view(-1, 1, 1, 1)
    x = torch.where(x >= threshold, 1 - x, x)
    return (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """The grey (N, 1, H, W) of RGB (N, 3, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space (Smith 1978), keeping value and chroma."""
    red, green, blue = x.split(1, dim=1)
    value = red.maximum(green).maximum(blue)
    chroma = value - red.minimum(green).minimum(blue)
    divisor = torch.where(chroma == 0, 1, chroma)
    from_green_or_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, from_green_or_blue) + 6 * turns
    # Back to RGB without cases: the value less a share of the chroma, by the channel's place on the circle.
    places = ((sixths + place).remainder(6) for place in (5, 3, 1))
    return torch.cat([value - chroma * k.minimum(4 - k).clamp(0, 1) for k in places], dim=1)


def _kernels(sigma: Tensor, limit: int) -> Tensor:
    """Gaussian kernels (N, taps) for sigmas (N,), each cut at its own three sigmas and at `limit`.

    The widest decides the number of taps and the others are padded with zeros, so that an image's
    pixels do not depend on what else is in the batch.
    """
    radius = (KERNEL_SIGMAS * sigma).ceil().clamp(max=limit)
    widest = int(radius.max())
    taps = torch.arange(-widest, widest + 1).abs()
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= radius[:, None])
    return weights / weights.sum(1, keepdim=True)


def _blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Separable blur of images (N, C, H, W) by kernels (N, taps); edges are reflected."""
    n, channels, height, width = x.shape
    planes = n * channels
    across = kernels.repeat_interleave(channels, dim=0).view(planes, 1, 1, -1)
    radius = kernels.shape[1] // 2
    y = F.pad(x.reshape(1, planes, height, width), (radius,) * 4, mode="reflect")
    y = F.conv2d(F.conv2d(y, across, groups=planes), across.transpose(2, 3), groups=planes)
    return y.view_as(x)


def _fused(function: Callable[..., Tensor], x: Tensor, *rest: Tensor) -> Tensor:
    global _broken
    if x.is_cuda and not _broken:
        try:
            return _compiled(function)(x, *rest)
        except Exception as error:  # e.g. no C compiler, which shows only here
            _broken = True
            log.info("torch.compile failed (%s): images are augmented uncompiled", str(error).split("\n")[0])
    return function(x, *rest)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)
