"""Crops that are turned while they are resized: one interpolation from the image to the turned view.

An upright view samples the image, smoothed by the antialiasing filter, on an upright grid. A turned view
samples the same smooth image on a grid that is turned. So the filter stays with the image: it is the bicubic
kernel (Keys 1981, a = -1/2), stretched along the image's axes by as much as the crop shrinks, as in `resize`.
Pixels from beyond the crop come from the image around it, and beyond the image from its mirror image.
"""

import math

import numpy as np
import torch
from torch import Tensor

from data_pipeline.decoders.pixels import Pixels
from data_pipeline.transforms.actions import GREY
from data_pipeline.transforms.compiled import jit

_f = np.float32
_ONE, _TWO = _f(1), _f(2)


def turned_crop(
    image: Pixels,
    box: tuple[int, int, int, int],
    mirrored: tuple[bool, bool],
    size: int,
    *,
    rotation: float,
    shift: tuple[float, float],
    periodic: bool,
    disc: bool,
) -> Tensor:
    """Crop `box` (top, left, height, width) from `image` (H, W, C), and return it as (C, size, size).

    The crop is mirrored (left to right, top to bottom), shifted (to the right, downwards) and then rotated
    counterclockwise; all angles are in radians, and 2π shifts by a whole side. `periodic` crops continue with
    themselves. With `disc`, pixels outside the inscribed disc are `GREY`.
    """
    top, left, height, width = box
    stretch = np.array([height / size, width / size])
    # From a view's pixel, relative to the centre, to the place in the upright view, and on to the image.
    upright = np.array([[math.cos(rotation), math.sin(rotation)], [-math.sin(rotation), math.cos(rotation)]])
    signs = np.where(mirrored[::-1], -1, 1) * stretch
    turn = signs[:, None] * upright
    shifted = np.array(shift[::-1]) * size / (2 * math.pi)
    center = np.array([top + height / 2, left + width / 2]) - 0.5 - signs * shifted
    start = center - turn.sum(1) * (size - 1) / 2
    bounds = np.array([[top, height], [left, width]] if periodic else [[0, n] for n in image.shape[:2]])
    view = np.empty((image.shape[2], size, size), image.dtype)
    full = _f(np.iinfo(image.dtype).max)
    _sample(np.ascontiguousarray(image), full, start, turn, stretch, bounds, periodic, disc, view)
    return torch.from_numpy(view)


@jit
def _sample(image, full, start, turn, stretch, bounds, periodic, disc, view):  # type: ignore[no-untyped-def]
    """Fill `view` (C, S, S): its pixel (i, j) shows the place `start` + `turn` · (i, j) of the image."""
    channels, size, _ = view.shape
    radius, middle = (size / 2) ** 2, (size - 1) / 2
    longest = int(4 * max(max(stretch[0], stretch[1]), 1.0)) + 2
    rows, columns = np.empty(longest, np.int64), np.empty(longest, np.int64)
    down, across = np.empty(longest, np.float32), np.empty(longest, np.float32)
    for i in range(size):
        for j in range(size):
            if disc and (i - middle) ** 2 + (j - middle) ** 2 > radius:
                for c in range(channels):
                    view[c, i, j] = int(full * _f(GREY) + _f(0.5))
                continue
            y = start[0] + turn[0, 0] * i + turn[0, 1] * j
            x = start[1] + turn[1, 0] * i + turn[1, 1] * j
            height = _taps(y, stretch[0], bounds[0, 0], bounds[0, 1], periodic, rows, down)
            width = _taps(x, stretch[1], bounds[1, 0], bounds[1, 1], periodic, columns, across)
            for c in range(channels):
                total = _f(0)
                for k in range(height):
                    part = _f(0)
                    for m in range(width):
                        part += across[m] * _f(image[rows[k], columns[m], c])
                    total += down[k] * part
                view[c, i, j] = int(min(max(total, _f(0)), full) + _f(0.5))


@jit
def _taps(position, stretch, first, length, periodic, places, weights):  # type: ignore[no-untyped-def]
    """Write the pixels within the kernel's reach of a position, and their weights; return their number.

    Pixels are those from `first` on, `length` of them; beyond these the line is periodic or mirrored.
    """
    stretch = max(stretch, 1.0)
    low = math.ceil(position - 2 * stretch)
    count = int(math.floor(position + 2 * stretch) - low) + 1
    total = _f(0)
    for k in range(count):
        distance = _f(abs(low + k - position) / stretch)
        if distance < _ONE:
            weight = (_f(1.5) * distance - _f(2.5)) * distance * distance + _ONE
        else:
            weight = ((_f(-0.5) * distance + _f(2.5)) * distance - _f(4)) * distance + _TWO
        weights[k] = weight
        total += weight
        place = int(low) + k - first
        if place < 0 or place >= length:
            if periodic:
                place = place % length
            else:
                place = place % (2 * length)
                place = min(place, 2 * length - 1 - place)
        places[k] = first + place
    for k in range(count):
        weights[k] /= total
    return count
