"""Distributions as bars that a page can draw."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OUTLINE_BARS = 64
"""Bars of an outline."""

_BINS = 40


@dataclass(frozen=True)
class Histogram:
    title: str
    bars: list[float]
    """Heights from 0 to 1; none if all values are the same."""
    ticks: list[str]
    """What is at the left edge, in the middle and at the right edge; or the one value that there is."""
    note: str


def histogram(
    title: str, values: ArrayLike, show: Callable[[float], str], *, logarithmic: bool = False
) -> Histogram:
    """The distribution of `values` (n,), n ≥ 1, from the smallest to the largest; `show` writes a value.

    Whole numbers that differ little get a bar each. Logarithmic bars need positive values.
    """
    x = np.asarray(values)
    low, high = float(x.min()), float(x.max())
    if low == high:
        return Histogram(title, [], [show(low)], "the same for all")
    note = f"median {show(float(np.median(x)))}"
    bins, ends = min(_BINS, 2 * math.ceil(math.sqrt(x.size))), (low, high)
    if np.issubdtype(x.dtype, np.integer) and high - low < _BINS:
        bins, ends = int(high - low) + 1, (low - 0.5, high + 0.5)
    elif logarithmic:
        x = np.log(x, dtype=np.float32)
        ends = (float(x.min()), float(x.max()))
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
    counts = np.histogram(x, bins, ends)[0]  # equal bins by number, which is fast for very many values
    return Histogram(title, _bars(counts), [show(low), show(middle), show(high)], note)


@dataclass(frozen=True)
class Outline:
    colour: str
    path: str
    """For SVG, in a box of `OUTLINE_BARS` × 1."""


@dataclass(frozen=True)
class Outlines:
    """Histograms that lie over each other, one a channel."""

    channels: list[Outline]
    ticks: list[str]


def outlines(counts: NDArray[np.int64], depth: int) -> Outlines:
    """How many pixels have which value: counts (C, bins) of bins from black to full scale.

    Images of 16 bits often fill but a corner of their range: for those it ends at the power of two
    that all values are below.
    """
    used = counts.shape[1]
    while depth == 16 and used > OUTLINE_BARS and not counts[:, used // 2 :].any():
        used //= 2
    heights = counts[:, :used].reshape(len(counts), OUTLINE_BARS, -1).sum(axis=2)
    scale = used / counts.shape[1]
    paths = [Outline(_colour(number, len(counts)), _path(_bars(row))) for number, row in enumerate(heights)]
    return Outlines(paths, ["0", f"{scale / 2:.3g}", f"{scale:.3g}"])


def _bars(counts: NDArray[np.integer]) -> list[float]:
    """Heights from 0 to 1; what is not empty can be seen."""
    shares = counts / max(counts.max(), 1)
    return np.where(counts > 0, shares.clip(min=0.01), 0).round(4).tolist()


def _colour(channel: int, channels: int) -> str:
    """Around the colour circle from red, so that three are red, green and blue."""
    return "currentColor" if channels == 1 else f"hsl({360 * channel // channels} 65% 50%)"


def _path(heights: list[float]) -> str:
    steps = " ".join(f"V{1 - height:.4g}H{right}" for right, height in enumerate(heights, start=1))
    return f"M0 1{steps}V1Z"
