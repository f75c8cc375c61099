"""Circle actions on images: rotations, turns of the hue, and cyclic shifts, by given angles.

`turn` is the reference, for float images in memory. The loader does the same to a crop while it resamples the
crop (`turned_crop`), so that a turned view is interpolated once.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.transforms.config import Action, Border
from data_pipeline.transforms.hue import turn_hue

Places = TypeVar("Places", Tensor, NDArray[np.int64])
SHIFTS: tuple[Action, ...] = ("shift_x", "shift_y")
GREY = 0.5
"""The value outside the disc, on the scale where white is 1."""


def turn(images: Tensor, actions: Sequence[Action], angles: Tensor, border: Border = "disc") -> Tensor:
    """Return float images (N, C, H, W) on which the actions have acted with `angles` (N, m), in radians.

    Shifts come first, then the rotation, then the hue, in whatever order `actions` are named. Sampling is
    bicubic (Keys 1981, a = -1/2) and nothing is clipped. With a shift the image counts as periodic, also for
    a rotation. With a rotation and the border "disc", pixels outside the inscribed disc are `GREY` at every
    angle, including 0.
    """
    angle = dict(zip(actions, angles.to(images.dtype).unbind(1), strict=True))
    height, width = images.shape[2:]
    if moves(actions):
        zero = images.new_zeros(len(images))
        rows = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
        columns = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        rotation = angle.get("rotation", zero).view(-1, 1, 1)
        cos, sin = rotation.cos(), rotation.sin()
        right, down = (
            angle.get(shift, zero).view(-1, 1, 1) * (side / (2 * math.pi))
            for shift, side in zip(SHIFTS, (width, height), strict=True)
        )
        y = sin * u + cos * v - down + (height - 1) / 2
        x = cos * u - sin * v - right + (width - 1) / 2
        images = _sample(images, y, x, is_periodic(actions))
        if "rotation" in actions and border == "disc":
            outside = u**2 + v**2 > (min(height, width) / 2) ** 2
            images = images.masked_fill(outside, GREY)
    return turn_hue(images, angle["hue"]) if "hue" in actions else images


def moves(actions: Sequence[Action]) -> bool:
    """Return whether any of the actions moves pixels."""
    return any(action != "hue" for action in actions)


def is_periodic(actions: Sequence[Action]) -> bool:
    """Return whether images count as periodic, because an action shifts them."""
    return any(action in SHIFTS for action in actions)


def inside(places: Places, length: int, periodic: bool) -> Places:
    """Return which of `length` pixels are seen at integer places of a line.

    A line that is not periodic continues with its mirror image.
    """
    if periodic:
        return places % length
    return length - 1 - abs(places % (2 * length) * 2 + 1 - 2 * length) // 2


def _sample(images: Tensor, y: Tensor, x: Tensor, periodic: bool) -> Tensor:
    """Interpolate images (N, C, H, W) at rows y and columns x (N, H', W'), counted in pixels from 0."""
    n, channels, height, width = images.shape
    flat, result = images.flatten(2), images.new_zeros(n, channels, *y.shape[1:])
    across = _taps(x, width, periodic)
    for rows, down in _taps(y, height, periodic):
        for columns, weights in across:
            places = (rows * width + columns).view(n, 1, -1).expand(-1, channels, -1)
            pixels = flat.gather(2, places).view(n, channels, *y.shape[1:])
            result = result + (down * weights)[:, None] * pixels
    return result


def _taps(positions: Tensor, length: int, periodic: bool) -> list[tuple[Tensor, Tensor]]:
    """Return the four pixels around each position in a line of `length` pixels, with their weights."""
    first = positions.floor()
    taps = []
    for offset in (-1, 0, 1, 2):
        distance = (positions - first - offset).abs()
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        place = inside(first.long() + offset, length, periodic)
        taps.append((place, torch.where(distance < 1, near, far)))
    return taps
