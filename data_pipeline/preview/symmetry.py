"""Measure how far the mean image tells images from their mirror images, so that a recipe may mirror them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_CELLS = 8
"""Cells along a side of the mean image that is compared."""
ALIKE = 0.02
"""Below this share an image and its mirror image look alike in the mean: solar cells upside down have 0.006,
photographs of CIFAR-10 left to right 0.000 and upside down 0.037. `pretrain.starting.found.images` measures
the shares of a data set."""

MIRRORED: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "upside down": lambda x: x[:, ::-1],
    "left to right": lambda x: x[:, :, ::-1],
    "about the diagonal": lambda x: x.swapaxes(1, 2),
}
"""Mirrorings of images (n, side, side). All of them together make the quarter turns."""


def differences(thumbnails: NDArray[np.float32]) -> dict[str, float]:
    """Return for each of `MIRRORED` the share of the difference to the mirror image that all images have.

    `thumbnails` are grey images (n, side, side), n ≥ 2, with a side that 8 divides. With the difference d of
    an image and its mirror image on 8 × 8 cells, the share is |mean of d|² over the mean of |d|², without the
    part of 1/n that independent images have by chance; it is about 0 if the two have one distribution, and 1
    if every image differs alike. What the mean image does not show is not found.
    """
    n, side = len(thumbnails), thumbnails.shape[1] // _CELLS
    cells = thumbnails.reshape(n, _CELLS, side, _CELLS, side).mean((2, 4), dtype=np.float64)
    shares = {}
    for name, mirror in MIRRORED.items():
        d = (cells - mirror(cells)).reshape(n, -1)
        every = float(np.square(d).sum(1).mean())
        common = float(np.square(d.mean(0)).sum())
        shares[name] = (common - every / n) / (every * (1 - 1 / n)) if every else 0.0
    return shares
