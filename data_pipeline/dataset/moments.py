"""Mean and standard deviation over any number of pixels, from exact integer sums."""

import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from isotorus.section import Section

WHITE = 65_535
"""The value of white in all sums."""
_AT_ONCE = 2**17  # values in a block, so that the block and its squares stay in the CPU's cache


class Moments(Section):
    """Sums over pixels for each channel, on a scale where white is 65535 whatever the depth of the images.

    The sums are integers, so the order and grouping of the images never change the result.
    """

    pixels: int | list[int]
    """Number of valid pixels in each channel; a list where channels may have different numbers."""
    totals: list[int]
    """Sum of the values in each channel."""
    squares: list[int]
    """Sum of the squared values in each channel."""

    @classmethod
    def of_image(
        cls, pixels: NDArray[np.uint8] | NDArray[np.uint16], valid: NDArray[np.bool_] | None = None
    ) -> Self:
        """Return the sums of one image (H, W, C), uint8 or uint16, in which white is the largest value of
        the type. `valid` says which values are counted; None: all.
        """
        height, width, channels = pixels.shape
        counted: NDArray[Any] = pixels if valid is None else np.where(valid, pixels, 0)
        rows = counted.reshape(height, width * channels)
        step = max(_AT_ONCE // rows.shape[1], 1)
        # Floats are fast, and exact here: at most 65535 squares of at most 65535² sum to less than 2⁵³.
        totals, squares = np.zeros((2, rows.shape[1]))
        for start in range(0, height, step):
            block = rows[start : start + step].astype(np.float64)
            totals += block.sum(0)
            squares += np.einsum("ij,ij->j", block, block)
        scale = WHITE // np.iinfo(pixels.dtype).max
        return cls(
            pixels=height * width if valid is None else valid.sum((0, 1)).tolist(),
            totals=[scale * total for total in _by_channel(totals, channels)],
            squares=[scale**2 * total for total in _by_channel(squares, channels)],
        )

    @classmethod
    def zero(cls, channels: int) -> Self:
        """Return the sums of no pixels."""
        return cls(pixels=0, totals=[0] * channels, squares=[0] * channels)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the sums of both; a grey image counts as one with equal red, green and blue."""
        channels = max(len(self.totals), len(other.totals))
        mine, others = self._spread(channels), other._spread(channels)
        one_number = isinstance(mine.pixels, int) and isinstance(others.pixels, int)
        counts = [a + b for a, b in zip(mine._counts, others._counts, strict=True)]
        return Moments(
            pixels=counts[0] if one_number else counts,
            totals=[a + b for a, b in zip(mine.totals, others.totals, strict=True)],
            squares=[a + b for a, b in zip(mine.squares, others.squares, strict=True)],
        )

    def __sub__(self, other: "Moments") -> "Moments":
        """Return the sums without those of `other`, whose images are among those of these sums."""
        pixels = -other.pixels if isinstance(other.pixels, int) else [-count for count in other.pixels]
        totals, squares = [-total for total in other.totals], [-square for square in other.squares]
        return self + Moments(pixels=pixels, totals=totals, squares=squares)

    def _spread(self, channels: int) -> "Moments":
        """Return the sums of grey images as those of images with `channels` equal channels."""
        times = channels // len(self.totals)
        pixels = self.pixels if isinstance(self.pixels, int) else self.pixels * times
        return Moments(pixels=pixels, totals=self.totals * times, squares=self.squares * times)

    @property
    def _counts(self) -> list[int]:
        """Number of valid pixels in each channel."""
        return [self.pixels] * len(self.totals) if isinstance(self.pixels, int) else self.pixels

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, on the scale where white is 1; 0 for a channel without a valid pixel."""
        return [
            total / count / WHITE if count else 0.0
            for total, count in zip(self.totals, self._counts, strict=True)
        ]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, on the scale where white is 1; 0 for a channel without a
        valid pixel.
        """
        return [
            math.sqrt(squares * count - total**2) / count / WHITE if count else 0.0
            for total, squares, count in zip(self.totals, self.squares, self._counts, strict=True)
        ]


def _by_channel(columns: NDArray[np.float64], channels: int) -> list[int]:
    """Sum values by channel, where column w·channels + c belongs to channel c."""
    return columns.astype(np.int64).reshape(-1, channels).sum(0).tolist()
