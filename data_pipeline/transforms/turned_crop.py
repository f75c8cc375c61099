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
from data_pipeline.transforms.actions import GREY, inside
from data_pipeline.transforms.compiled import jit

_f = np.float32
_ONE, _TWO = _f(1), _f(2)
PHASES = 256
"""Places are rounded to 1/256 of a pixel, so that weights come from a table."""


def turned_crop(
    image: Pixels,
    box: tuple[float, float, float, float],
    mirrored: tuple[bool, bool],
    size: int,
    *,
    rotation: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    periodic: bool = False,
    disc: bool = False,
) -> Tensor:
    """Crop `box` (top, left, height, width) from `image` (H, W, C), and return it as (C, size, size).

    The box need not begin or end at whole pixels, unless it is periodic.
    The crop is mirrored (left to right, top to bottom), shifted (to the right, downwards) and then rotated
    counterclockwise; all angles are in radians, and 2π shifts by a whole side. `periodic` crops continue with
    themselves. With `disc`, pixels outside the inscribed disc are `GREY`.
    """
    top, left, height, width = box
    stretch = np.array([height / size, width / size])
    # This maps a view's pixel, relative to the centre, to a place in the upright view, and that to the image.
    upright = np.array([[math.cos(rotation), math.sin(rotation)], [-math.sin(rotation), math.cos(rotation)]])
    signs = np.where(mirrored[::-1], -1, 1) * stretch
    turn = signs[:, None] * upright
    shifted = np.array(shift[::-1]) * size / (2 * math.pi)
    center = np.array([top + height / 2, left + width / 2]) - 0.5 - signs * shifted
    # The rectangle of the image that the kernel reaches, with its pixels beyond the edges filled in.
    half = np.ceil(2 * np.maximum(stretch, 1)).astype(int)
    reach = (np.abs(signs) if disc else np.abs(turn).sum(1)) * size / 2
    first = np.floor(center - reach).astype(int) - half
    last = np.ceil(center + reach).astype(int) + half
    lines = (
        [(int(top), int(height)), (int(left), int(width))] if periodic else [(0, n) for n in image.shape[:2]]
    )
    rows, columns = (
        start + inside(np.arange(low - start, high - start + 1), length, periodic)
        for low, high, (start, length) in zip(first, last, lines, strict=True)
    )
    patch = image.take(rows, axis=0).take(columns, axis=1)
    view = np.empty((image.shape[2], size, size), image.dtype)
    start = center - first - turn.sum(1) * (size - 1) / 2
    full = _f(np.iinfo(image.dtype).max)
    channels = image.shape[2]
    _sample(patch.reshape(len(rows), -1), channels, full, start, turn, stretch, half, disc, view)
    return torch.from_numpy(view)


@jit
def _sample(patch, channels, full, start, turn, stretch, half, disc, view):  # type: ignore[no-untyped-def]
    """Fill `view` (C, S, S): its pixel (i, j) shows the place `start` + `turn` · (i, j) of `patch`.

    `patch` is (H, W · C), and the kernel reaches `half` (2,) pixels far.
    """
    size = view.shape[1]
    radius, middle = (size / 2) ** 2, (size - 1) / 2
    down_table, across_table = weights(stretch[0], half[0]), weights(stretch[1], half[1])
    height, width = 2 * half[0], 2 * half[1] * channels
    sums = np.empty(width, np.float32)
    for i in range(size):
        for j in range(size):
            if disc and (i - middle) ** 2 + (j - middle) ** 2 > radius:
                for c in range(channels):
                    view[c, i, j] = int(full * _f(GREY) + _f(0.5))
                continue
            y = start[0] + turn[0, 0] * i + turn[0, 1] * j
            x = start[1] + turn[1, 0] * i + turn[1, 1] * j
            top, left = math.floor(y), math.floor(x)
            down = down_table[int((y - top) * PHASES + 0.5)]
            across = across_table[int((x - left) * PHASES + 0.5)]
            # Loops over slices are vectorised; over indices of the whole array they would not be.
            row, column = int(top) - half[0] + 1, (int(left) - half[1] + 1) * channels
            line = patch[row, column : column + width]
            for t in range(width):
                sums[t] = down[0] * _f(line[t])
            for k in range(1, height):
                line = patch[row + k, column : column + width]
                for t in range(width):
                    sums[t] += down[k] * _f(line[t])
            for c in range(channels):
                total = _f(0)
                for m in range(2 * half[1]):
                    total += across[m] * sums[m * channels + c]
                view[c, i, j] = int(min(max(total, _f(0)), full) + _f(0.5))


@jit
def weights(stretch, half):  # type: ignore[no-untyped-def]
    """Return the weights (phases, 2 · half) of the pixels around a place, a row for each part of a pixel."""
    stretch = max(stretch, 1.0)
    table = np.empty((PHASES + 1, 2 * half), np.float32)
    for phase in range(PHASES + 1):
        row, total = table[phase], _f(0)
        for k in range(2 * half):
            distance = _f(abs(k - half + 1 - phase / PHASES) / stretch)
            if distance < _ONE:
                row[k] = (_f(1.5) * distance - _f(2.5)) * distance * distance + _ONE
            elif distance < _TWO:
                row[k] = ((_f(-0.5) * distance + _f(2.5)) * distance - _f(4)) * distance + _TWO
            else:
                row[k] = _f(0)
            total += row[k]
        for k in range(2 * half):
            row[k] /= total
    return table
