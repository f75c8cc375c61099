"""The turn of an image's colours: a circle action, unlike a shift of the hue in HSV, because it is linear.

A colour is its luma plus a point of the chroma plane, whose axes are I and Q of the NTSC standard. Turning
that plane keeps luma, leaves grey as it is, and two turns compose exactly as long as nothing is clipped.
"""

import numpy as np
import torch
from torch import Tensor

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Luma and the two chroma axes of a colour (red, green, blue)."""
WEIGHTS: tuple[float, ...] = tuple(_YIQ[0].tolist())
"""Weights of red, green and blue in luma; they add up to 1."""
QUARTER: tuple[tuple[float, ...], ...] = tuple(
    map(tuple, (np.linalg.inv(_YIQ)[:, 1:] @ [[0, -1], [1, 0]] @ _YIQ[1:]).tolist())
)
"""The 3 × 3 matrix that turns a colour's chroma by a quarter of the circle, and drops its luma."""


def turn_hue(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the chroma plane of images (N, 3, H, W) by `angles` (N,), in radians; values may leave [0, 1].

    An image whose angle is 0 stays exactly as it is.
    """
    angles = angles.view(-1, 1, 1, 1)
    channels = x.split(1, dim=1)
    luma = _weighted(WEIGHTS, channels)
    quarter = torch.cat([_weighted(row, channels) for row in QUARTER], dim=1)
    turned = luma + angles.cos() * (x - luma) + angles.sin() * quarter
    return torch.where(angles != 0, turned, x)


def _weighted(weights: tuple[float, ...], channels: tuple[Tensor, ...]) -> Tensor:
    red, green, blue = channels
    return weights[0] * red + weights[1] * green + weights[2] * blue
