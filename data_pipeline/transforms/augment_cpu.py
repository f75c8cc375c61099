"""The photometric operators for CPUs, compiled by numba; each image is processed while it is in the CPU's
cache.

Results equal those of `augment_torch` except for rounding. This replaces torchvision's v2 transforms, which
allocate memory and go through it once for each operator; that costs more than the arithmetic. From shards to
augmented views, one core makes 182 images a second with this module, and 21 with webdataset and torchvision
("Data path" in benchmarks/RESULTS.md).
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data_pipeline.transforms.augment_torch import KERNEL_SIGMAS, LUMA
from data_pipeline.transforms.columns import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    DROP,
    GAMMA,
    GREY,
    HUE,
    KEY,
    NOISE,
    PARAMETERS,
    SATURATION,
    SHOT,
    SOLARIZE,
    TURN,
)
from data_pipeline.transforms.compiled import jit
from data_pipeline.transforms.hue import QUARTER, WEIGHTS

_f = np.float32
_ZERO, _ONE, _SIX = _f(0), _f(1), _f(6)
_RED, _GREEN, _BLUE = (_f(weight) for weight in LUMA)
_SIGMAS = _f(KERNEL_SIGMAS)
_WEIGHTS, _QUARTER = np.array(WEIGHTS, np.float32), np.array(QUARTER, np.float32)
_BITS, _STEP = np.uint64(2**32 - 1), np.uint64(0x9E3779B9)
_TURN = _f(2 * math.pi * 2.0**-32)
_RUN = 4096  # pixels summed in float32 before the sum is added in float64


def apply(
    images: Tensor, parameters: Tensor, mean: Sequence[float], std: Sequence[float], colours: bool = True
) -> Tensor:
    """Augment images as `augment.apply` describes, with as many threads as torch uses.

    `colours` says whether three channels are red, green and blue.
    """
    source = images.contiguous().numpy()
    table = parameters.to(torch.float32).contiguous().numpy()
    assert table.shape == (len(source), len(PARAMETERS)), table.shape  # compiled loops check no bounds
    # Allocated by torch: the rounding of later matrix products depends on the alignment of memory.
    result = torch.empty(images.shape, dtype=torch.float32)
    out = result.numpy()
    center, scale = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
    full = _f(np.iinfo(source.dtype).max)

    def work(part: slice) -> None:
        _augment(source[part], full, table[part], center, scale, colours, out[part])

    threads = min(torch.get_num_threads(), len(source))
    if threads <= 1:
        work(slice(None))
    else:
        bounds = [len(source) * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, map(slice, bounds, bounds[1:])))
    return result


@jit
def _clamp(x):  # type: ignore[no-untyped-def]
    """Return x limited to [0, 1]."""
    return min(max(x, _ZERO), _ONE)


@jit
def _augment(images, full, parameters, mean, std, colours, result):  # type: ignore[no-untyped-def]
    """Augment images (N, C, H, W) with parameters (N, P), and write the results to `result`."""
    # Loops use indices: numba treats arrays from iteration as strided, and does not vectorise them.
    for n in range(len(images)):
        image, row, out = images[n], parameters[n], result[n]
        if colours and len(image) == 3:
            _colour(image, full, row, out)
        else:
            for c in range(len(image)):
                _levels(image[c].ravel(), full, row[BRIGHTNESS], row[CONTRAST], out[c].ravel())
        if row[BLUR] > 0:
            _blur(out, row[BLUR])
        power, noise, shot = row[GAMMA], row[NOISE], row[SHOT]
        if power != _ONE or noise > 0 or shot > 0:
            for c in range(len(out)):
                _measure(out[c].ravel(), power, noise, shot, np.uint64(row[KEY]), c * out[c].size)
        if colours and row[TURN] != 0 and len(image) == 3:
            _finish_turned(out, row[SOLARIZE], row[TURN], mean, std)
        else:
            for c in range(len(out)):
                _finish(out[c].ravel(), row[SOLARIZE], mean[c], _ONE / std[c])
        if row[DROP] > 0:
            out[int(row[DROP]) - 1, :, :] = _ZERO


@jit
def _levels(plane, full, brightness, contrast, out):  # type: ignore[no-untyped-def]
    """Change brightness and contrast of one channel (pixels,)."""
    gain = brightness / full
    total = 0.0
    for start in range(0, len(plane), _RUN):
        part = _ZERO
        for i in range(start, min(start + _RUN, len(plane))):
            part += min(_f(plane[i]) * gain, _ONE)
        total += float(part)
    grey = _f(total / len(plane))
    for i in range(len(plane)):
        out[i] = _clamp(grey + contrast * (min(_f(plane[i]) * gain, _ONE) - grey))


@jit
def _luma(r, g, b):  # type: ignore[no-untyped-def]
    """Return the grey value of a pixel, weighted as in torchvision."""
    return _RED * r + _GREEN * g + _BLUE * b


@jit
def _colour(image, full, row, out):  # type: ignore[no-untyped-def]
    """Change brightness, contrast, saturation and hue of an RGB image (3, H, W), and convert it to grey if
    asked.
    """
    gain, contrast, saturation = row[BRIGHTNESS] / full, row[CONTRAST], row[SATURATION]
    turns, grey = row[HUE], row[GREY]
    red, green, blue = image[0].ravel(), image[1].ravel(), image[2].ravel()
    out_red, out_green, out_blue = out[0].ravel(), out[1].ravel(), out[2].ravel()
    total = 0.0
    for start in range(0, len(red), _RUN):
        part = _ZERO
        for i in range(start, min(start + _RUN, len(red))):
            r, g, b = _f(red[i]) * gain, _f(green[i]) * gain, _f(blue[i]) * gain
            part += _luma(min(r, _ONE), min(g, _ONE), min(b, _ONE))
        total += float(part)
    mean = _f(total / len(red))
    for i in range(len(red)):
        r, g, b = _f(red[i]) * gain, _f(green[i]) * gain, _f(blue[i]) * gain
        r = _clamp(mean + contrast * (min(r, _ONE) - mean))
        g = _clamp(mean + contrast * (min(g, _ONE) - mean))
        b = _clamp(mean + contrast * (min(b, _ONE) - mean))
        luma = _luma(r, g, b)
        r = _clamp(luma + saturation * (r - luma))
        g = _clamp(luma + saturation * (g - luma))
        b = _clamp(luma + saturation * (b - luma))
        if turns != 0:
            value = max(r, max(g, b))
            chroma = value - min(r, min(g, b))
            share = _ONE / (chroma if chroma > 0 else _ONE)
            if value == r:
                sixths = (g - b) * share
            elif value == g:
                sixths = _f(2) + (b - r) * share
            else:
                sixths = _f(4) + (r - g) * share
            sixths += _SIX * turns
            r = value - chroma * _chroma_share(sixths + _f(5))
            g = value - chroma * _chroma_share(sixths + _f(3))
            b = value - chroma * _chroma_share(sixths + _f(1))
        if grey != 0:
            r = g = b = _luma(r, g, b)
        out_red[i], out_green[i], out_blue[i] = r, g, b


@jit
def _chroma_share(place):  # type: ignore[no-untyped-def]
    """Return (value - channel) / chroma of a colour channel, given its `place` on the colour circle in
    sixths.
    """
    place -= _SIX * np.floor(place * (_ONE / _SIX))
    return _clamp(min(place, _f(4) - place))


@jit
def _blur(image, sigma):  # type: ignore[no-untyped-def]
    """Apply a separable Gaussian blur to an image (C, H, W) in place; edges are reflected."""
    _, height, width = image.shape
    radius = min(math.ceil(_SIGMAS * sigma), min(height, width) - 1)
    weights = np.exp(_f(-0.5) * (np.arange(radius + 1).astype(np.float32) / sigma) ** 2)
    weights /= _f(2) * weights.sum() - _ONE
    rows = np.empty((height, width), dtype=np.float32)
    line = np.empty(width + 2 * radius, dtype=np.float32)
    for c in range(len(image)):
        plane = image[c]
        for y in range(height):
            line[radius : radius + width] = plane[y]
            for k in range(1, radius + 1):
                line[radius - k] = line[radius + k]
                line[radius + width - 1 + k] = line[radius + width - 1 - k]
            _scale(rows[y], weights[0], line[radius : radius + width])
            for k in range(1, radius + 1):
                before, after = line[radius - k :], line[radius + k :]
                _add(rows[y], weights[k], before[:width], after[:width])
        for y in range(height):
            _scale(plane[y], weights[0], rows[y])
            for k in range(1, radius + 1):
                _add(plane[y], weights[k], rows[abs(y - k)], rows[height - 1 - abs(height - 1 - y - k)])


@jit
def _scale(out, weight, x):  # type: ignore[no-untyped-def]
    """Set `out` to `weight` · x."""
    for i in range(len(out)):
        out[i] = weight * x[i]


@jit
def _add(out, weight, a, b):  # type: ignore[no-untyped-def]
    """Add `weight` · (a + b) to `out`."""
    for i in range(len(out)):
        out[i] += weight * (a[i] + b[i])


@jit
def _measure(plane, power, noise, shot, key, first):  # type: ignore[no-untyped-def]
    """Raise one channel (pixels,) to a power and add noise, as `augment_torch.measure` does, in place.

    `first` is the number of the channel's first pixel in the image.
    """
    start = key * _STEP + np.uint64(first)
    for i in range(len(plane)):
        x = plane[i]
        if power != _ONE:
            x = x**power
        variance = noise * noise + shot * x
        if variance > 0:
            a = _mixed((start + np.uint64(i)) & _BITS)
            b = _mixed((a + _STEP) & _BITS)
            radius = np.sqrt(_f(-2) * np.log((_f(a >> np.uint64(8)) + _f(0.5)) * _f(2.0**-24)))
            x += np.sqrt(variance) * radius * np.cos(_f(b) * _TURN)
        plane[i] = _clamp(x)


@jit
def _mixed(x):  # type: ignore[no-untyped-def]
    """Return 32 mixed bits, as `augment_torch` does."""
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & _BITS
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & _BITS
    return x ^ (x >> np.uint64(16))


@jit
def _finish(plane, threshold, mean, scale):  # type: ignore[no-untyped-def]
    """Solarize and normalise one channel (pixels,) in place; `scale` is 1 / std."""
    for i in range(len(plane)):
        x = plane[i]
        plane[i] = ((_ONE - x if x >= threshold else x) - mean) * scale


@jit
def _finish_turned(image, threshold, angle, mean, std):  # type: ignore[no-untyped-def]
    """Solarize an RGB image (3, H, W), turn its hue as `hue.turn_hue` does, and normalise it, in place."""
    cos, sin = np.cos(angle), np.sin(angle)
    red, green, blue = image[0].ravel(), image[1].ravel(), image[2].ravel()
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        r = _ONE - r if r >= threshold else r
        g = _ONE - g if g >= threshold else g
        b = _ONE - b if b >= threshold else b
        luma = _WEIGHTS[0] * r + _WEIGHTS[1] * g + _WEIGHTS[2] * b
        for c, plane, x in ((0, red, r), (1, green, g), (2, blue, b)):
            quarter = _QUARTER[c][0] * r + _QUARTER[c][1] * g + _QUARTER[c][2] * b
            plane[i] = (luma + cos * (x - luma) + sin * quarter - mean[c]) / std[c]
