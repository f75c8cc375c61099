"""Descriptors of images that need no training: gradients, colours and texture, as a baseline for encoders."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SIZE = 128
"""Side in pixels of the image that is described."""
CELL, BLOCK, ORIENTATIONS = 16, 2, 9
"""Side of a cell of HOG in pixels, of a block in cells, and the number of directions of a gradient."""
BINS = 32
"""Number of bins of the histogram of a channel."""
REACH = 3.0
"""Standard deviations on both sides of the mean that the histograms of 16-bit images cover."""
Range = tuple[float, float]
"""Smallest and largest value of a channel that its histogram covers, where black is 0 and white is 1."""


def ranges(depth: int, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Range, ...]:
    """Return what the histogram of each channel covers, given `mean` and `std` of the channels' pixels.

    Images of 8 bits use their whole range. Those of 16 bits seldom do, as a camera of 12 bits fills a
    sixteenth of it; their histograms cover `REACH` standard deviations on both sides of the mean.
    """
    if depth == 8:
        return ((0.0, 1.0),) * len(mean)
    return tuple(
        (max(0.0, m - REACH * s), min(1.0, m + REACH * s)) if s > 0 else (0.0, 1.0)
        for m, s in zip(mean, std, strict=True)
    )


@dataclass(frozen=True)
class Handmade:
    """Maps an image (C, SIZE, SIZE), uint8 or uint16, to vectors float32 by name.

    hog         histograms of oriented gradients (Dalal & Triggs 2005), at each pixel of the channel whose
                gradient is largest
    histograms  for each channel the shares of `BINS` equal bins, then the shares of the ten uniform local
                binary patterns of the mean channel (Ojala et al. 2002), all as square roots
    all         both, one after the other
    """

    covered: tuple[Range, ...]
    """What the histogram of each channel covers; further channels of the image are ignored."""

    def __call__(self, image: Tensor) -> dict[str, NDArray[np.float32]]:
        """Return the descriptors of one image by name."""
        pixels = image[: len(self.covered)].numpy()
        levels = float(np.iinfo(pixels.dtype).max) + 1
        gradients = _gradients(pixels.astype(np.float32) / np.float32(levels))
        counted = [
            _roots(_bins(channel / levels, low, high), BINS)
            for channel, (low, high) in zip(pixels, self.covered, strict=True)
        ]
        histograms = np.concatenate([*counted, _patterns(pixels)])
        both = np.concatenate([gradients, histograms])
        return {"all": both, "hog": gradients, "histograms": histograms}


def _gradients(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the histograms of oriented gradients of an image (C, H, W), blocks normalised by L2-Hys."""
    # Imported here because it takes seconds, and only this baseline needs it.
    from skimage.feature import hog

    described = hog(
        pixels.transpose(1, 2, 0),
        orientations=ORIENTATIONS,
        pixels_per_cell=(CELL, CELL),
        cells_per_block=(BLOCK, BLOCK),
        block_norm="L2-Hys",
        channel_axis=-1,
    )
    return np.asarray(described, dtype=np.float32)


def _bins(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.int64]:
    """Return the bin of each value; those outside of `low` to `high` count in the outermost bins."""
    return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)


def _patterns(pixels: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the square roots of the shares of the uniform patterns of eight neighbours, (10,)."""
    from skimage.feature import local_binary_pattern

    grey = pixels[0] if len(pixels) == 1 else np.rint(pixels.mean(axis=0)).astype(pixels.dtype)
    return _roots(local_binary_pattern(grey, 8, 1, method="uniform").astype(np.int64), 10)


def _roots(bins: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return the square roots of the shares of `count` bins, so that distances are Hellinger's."""
    return np.sqrt(np.bincount(bins.ravel(), minlength=count) / bins.size).astype(np.float32)
