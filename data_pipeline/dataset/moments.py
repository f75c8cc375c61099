"""Mean and standard deviation of any number of pixels, from exact integer sums that add up."""

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

from isotorus.section import Section

WHITE = 65_535
_AT_ONCE = 2**17  # values: a block and its squares stay in the cache


class Moments(Section):
    """Sums over pixels, a channel each, on the scale where white is 65535 whatever the images' depth.

    Integers, so neither the order nor the grouping of the images changes any result.
    """

    pixels: int
    """Of each channel."""
    totals: list[int]
    """Sum of the values."""
    squares: list[int]
    """Sum of the squared values."""

    @classmethod
    def of_image(cls, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Self:
        """Of one image (H, W, C), uint8 or uint16 (black is 0, white the largest value)."""
        height, width, channels = pixels.shape
        rows = pixels.reshape(height, width * channels)
        step = max(_AT_ONCE // rows.shape[1], 1)
        # Floats for speed, and exact: a column has at most 65535 values up to 65535, squared less than 2⁵³.
        totals, squares = np.zeros((2, rows.shape[1]))
        for start in range(0, height, step):
            block = rows[start : start + step].astype(np.float64)
            totals += block.sum(0)
            squares += np.einsum("ij,ij->j", block, block)
        scale = WHITE // np.iinfo(pixels.dtype).max
        return cls(
            pixels=height * width,
            totals=[scale * total for total in _by_channel(totals, channels)],
            squares=[scale**2 * total for total in _by_channel(squares, channels)],
        )

    @classmethod
    def zero(cls, channels: int) -> Self:
        return cls(pixels=0, totals=[0] * channels, squares=[0] * channels)

    def __add__(self, other: "Moments") -> "Moments":
        """Of both; where one of them is of grey images, grey is equal amounts of red, green and blue."""
        channels = max(len(self.totals), len(other.totals))
        mine, others = self._spread(channels), other._spread(channels)
        return Moments(
            pixels=mine.pixels + others.pixels,
            totals=[a + b for a, b in zip(mine.totals, others.totals, strict=True)],
            squares=[a + b for a, b in zip(mine.squares, others.squares, strict=True)],
        )

    def _spread(self, channels: int) -> "Moments":
        times = channels // len(self.totals)
        return Moments(pixels=self.pixels, totals=self.totals * times, squares=self.squares * times)

    @property
    def mean(self) -> list[float]:
        """A channel, where white is 1."""
        return [total / self.pixels / WHITE for total in self.totals]

    @property
    def std(self) -> list[float]:
        """A channel, where white is 1."""
        return [
            math.sqrt(squares * self.pixels - total**2) / self.pixels / WHITE
            for total, squares in zip(self.totals, self.squares, strict=True)
        ]


def _by_channel(columns: NDArray[np.float64], channels: int) -> list[int]:
    return columns.astype(np.int64).reshape(-1, channels).sum(0).tolist()
