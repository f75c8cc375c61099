"""The array type of decoded images, conversion rules for their channels, and limits for their size."""

from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image (H, W, C); the largest value of the type is white, 0 is black."""


class Numbers(NamedTuple):
    """The values of an image as its file holds them, before they become brightness."""

    values: NDArray[Any]
    """The values (H, W, C), real numbers of any type."""
    nodata: tuple[float, ...] = ()
    """Values that mean "not measured" according to the file itself."""
    inverted: bool = False
    """Whether the smallest value is white."""


PixelRules = Literal[1, 2]
"""Version of the rules by which a file becomes pixels. Under 1, only the TIFF files that Pillow reads are
turned by their orientation tag, and pages that are no channels and frames of an animation are ignored."""
NEWEST_RULES: Final = 2
"""The rules by which files are read unless a data set was packed under earlier ones."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as in Pillow's conversion."""

LONGEST_SIDE = 65_535
"""Most pixels of a side, as the index stores sides in 16 bits."""
MOST_PIXELS = 89_478_485
"""Most pixels of an image; Pillow's own limit."""
MOST_VALUES = 3 * MOST_PIXELS
"""Most pixels times channels; 512 MiB at 16 bits."""


def is_number(dtype: np.dtype[Any]) -> bool:
    """Return whether values of a type may become brightness: whole numbers and floats of up to 64 bits."""
    return dtype.kind in "uif" and dtype.itemsize <= 8


def convertible(own: int, wanted: int) -> bool:
    """Return whether images of `own` channels can be decoded to `wanted`: equal, or grey (1) and RGB (3)."""
    return own == wanted or {own, wanted} == {1, 3}


def check_size(height: int, width: int, channels: int) -> None:
    """Raise ValueError if an image of this size is empty or larger than is supported."""
    if min(height, width, channels) < 1:
        raise ValueError(f"an empty image of {width} × {height} pixels and {channels} channels")
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"a side of {max(height, width)} pixels; at most {LONGEST_SIDE} are supported")
    if height * width > MOST_PIXELS or height * width * channels > MOST_VALUES:
        raise ValueError(
            f"{width} × {height} pixels of {channels} channels: perhaps a decompression bomb; "
            f"at most {MOST_PIXELS} pixels and {MOST_VALUES} values are supported"
        )
