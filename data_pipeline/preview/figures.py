"""Figures for the page: images as data URIs, and distributions as bars and outlines."""

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

SMALL = 64
"""Images with sides up to this many pixels are stored without loss; larger ones as JPEG."""

OUTLINE_BARS = 64
"""Number of bars of an outline."""

_BINS = 40  # most bars of a histogram

Floats = NDArray[np.float32]


def unit_scale(image: NDArray[np.uint8] | NDArray[np.uint16]) -> Floats:
    """Return an image's integers as floats, on the scale where white is 1."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def display_range(image: Floats, depth: int) -> tuple[Floats, Floats]:
    """Return the values (C,) of an image (H, W, C) that are displayed as black and as white.

    They are 0 and 1 for 8-bit grey and colour images. For others they are the 1st and 99th percentile of the
    image, because 16-bit images seldom use their whole range; colour images have the same for all channels,
    so that hues stay.
    """
    channels = image.shape[2]
    if depth == 8 and channels in (1, 3):
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    axes = (0, 1, 2) if channels == 3 else (0, 1)
    low, high = np.percentile(image, (1, 99), axis=axes).astype(np.float32)
    high = np.where(high > low, high, low + 1)
    return np.broadcast_to(low, channels), np.broadcast_to(high, channels)


def describe_display(channels: int, depth: int) -> str:
    """Describe in sentences how `display_range` and `data_uri` change such images; "" if they do not."""
    said = []
    if channels not in (1, 3):
        first = "the first three as red, green and blue" if channels > 3 else "the first"
        said.append(
            f"Of the {channels} channels the original shows {first}; below it and in the views all channels "
            "are shown, each in grey, from left to right and from top to bottom."
        )
    if depth == 16 or channels not in (1, 3):
        each = "" if channels in (1, 3) else ", each channel by itself"
        said.append(f"Values are stretched between the original's 1st and 99th percentile{each}.")
    return " ".join(said)


def data_uri(image: Floats, low: Floats, high: Floats, longest: int) -> str:
    """Return an image (H, W, C) as a data URI with sides of at most `longest`; `low` is black, `high` is
    white.
    """
    channels = 1 if image.shape[2] < 3 else 3
    scaled = ((image - low) / (high - low))[..., :channels].clip(0, 1)
    pixels = np.rint(scaled * 255).astype(np.uint8)
    shown = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    shown.thumbnail((longest, longest), Image.Resampling.BOX)
    stream = io.BytesIO()
    if max(shown.size) <= SMALL:
        shown.save(stream, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    shown.save(stream, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def all_channels(image: Floats, low: Floats, high: Floats, longest: int) -> str:
    """Return all channels of an image (H, W, C) as one picture in a data URI, each in grey, in rows from left
    to right; `low` is black, `high` is white, and `longest` is the side of a channel.
    """
    scaled = ((image - low) / (high - low)).clip(0, 1)
    height, width, channels = scaled.shape
    across = math.ceil(math.sqrt(channels))
    down = math.ceil(channels / across)
    edge = max(1, max(height, width) // 64)
    tiles = np.ones((down * across, height + edge, width + edge), np.float32)
    tiles[:channels, :height, :width] = scaled.transpose(2, 0, 1)
    rows = tiles.reshape(down, across, height + edge, width + edge).transpose(0, 2, 1, 3)
    whole = rows.reshape(down * (height + edge), -1, 1)[:-edge, :-edge]
    return data_uri(whole, np.zeros(1, np.float32), np.ones(1, np.float32), longest * across)


@dataclass(frozen=True)
class Histogram:
    """A distribution as bars."""

    title: str
    bars: list[float]
    """Heights from 0 to 1; empty if all values are equal."""
    ticks: list[str]
    """Labels of the left edge, the middle and the right edge; or the only value."""
    note: str
    """A short text beside the title."""


def histogram(
    title: str, values: ArrayLike, show: Callable[[float], str], *, logarithmic: bool = False
) -> Histogram:
    """Return the distribution of `values` (n,), n ≥ 1, from smallest to largest; `show` formats a value.

    Whole numbers in a small range get one bar each. Values must be positive if bars are `logarithmic`.
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
    # Equal bins, given by number and range, are fast for very many values.
    counts = np.histogram(x, bins, ends)[0]
    return Histogram(title, _bars(counts), [show(low), show(middle), show(high)], note)


@dataclass(frozen=True)
class Outline:
    """The outline of one channel's histogram."""

    colour: str
    path: str
    """An SVG path in a box of `OUTLINE_BARS` × 1."""


@dataclass(frozen=True)
class Outlines:
    """Histograms of all channels, drawn over each other."""

    channels: list[Outline]
    ticks: list[str]


def outlines(counts: NDArray[np.int64], depth: int) -> Outlines:
    """Return the histograms of pixel values from `counts` (C, bins), whose bins reach from black to white.

    16-bit images often use a small part of their range, so the axis then ends at the smallest power of two
    above all values.
    """
    used = counts.shape[1]
    while depth == 16 and used > OUTLINE_BARS and not counts[:, used // 2 :].any():
        used //= 2
    heights = counts[:, :used].reshape(len(counts), OUTLINE_BARS, -1).sum(axis=2)
    scale = used / counts.shape[1]
    paths = [Outline(_colour(number, len(counts)), _path(_bars(row))) for number, row in enumerate(heights)]
    return Outlines(paths, ["0", f"{scale / 2:.3g}", f"{scale:.3g}"])


def _bars(counts: NDArray[np.integer]) -> list[float]:
    """Return heights from 0 to 1; counts above 0 get a visible height."""
    shares = counts / max(counts.max(), 1)
    return np.where(counts > 0, shares.clip(min=0.01), 0).round(4).tolist()


def _colour(channel: int, channels: int) -> str:
    """Return the CSS colour of a channel, spaced evenly on the colour circle; three channels are red,
    green, blue.
    """
    return "currentColor" if channels == 1 else f"hsl({360 * channel // channels} 65% 50%)"


def _path(heights: list[float]) -> str:
    """Return the SVG path of bars with these heights."""
    steps = " ".join(f"V{1 - height:.4g}H{right}" for right, height in enumerate(heights, start=1))
    return f"M0 1{steps}V1Z"
