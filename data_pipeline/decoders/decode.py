"""Bytes of one image file → pixels.

What kind of file it is, its first bytes say; each kind has a file of its own with the same two functions,
`size` and `read`.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders import jpeg, npy, pillow, png, tiff
from data_pipeline.decoders.pixels import LUMA, Pixels, convertible

_LUMA = np.rint(np.array(LUMA) * 2**16).astype(np.uint32)  # in 1/65536, as Pillow rounds them

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".npy"}

Shrink = Literal[1, 2, 4, 8]


@overload
def decode(
    data: bytes, channels: int | None = ..., depth: Literal[8] = ..., shrink: Shrink = ...
) -> NDArray[np.uint8]: ...
@overload
def decode(
    data: bytes, channels: int | None, depth: Literal[8, 16] | None, shrink: Shrink = ...
) -> Pixels: ...
def decode(
    data: bytes,
    channels: int | None = None,
    depth: Literal[8, 16] | None = 8,
    shrink: Shrink = 1,
) -> Pixels:
    """Pixels (H, W, C) of an encoded image, as uint8 or for depth 16 as uint16; full scale is white.

    C = `channels`, or with None the image's own number. 1 and 3 channels convert into each other; any
    other number must be the image's own. 8-bit images are widened by 257 and 16-bit ones are rounded; with
    depth None both stay what they are. Transparency is dropped, an orientation tag is not applied, and of
    several frames the first is taken, unless they are pages of a TIFF with one channel each, which become
    channels.

    A JPEG may come at 1/`shrink` of its size, rounded up, which takes less time.

    Raises ValueError with the reason in one line if the bytes are no whole image of a supported kind, or
    would unpack to more than `pixels.check_size` allows.
    """
    with _one_line():
        reader = _reader(data)
        pixels: Pixels = jpeg.read(data, channels, shrink) if reader is jpeg else reader.read(data)
        return _to_depth(_to_channels(pixels, channels), depth)


def largest_shrink(limit: float) -> Shrink:
    """Return the largest factor for a smaller JPEG that is at most `limit`; 1 if there is none."""
    factors: tuple[Shrink, ...] = (8, 4, 2)
    return next((factor for factor in factors if factor <= limit), 1)


def size(data: bytes) -> tuple[int, int]:
    """Height and width by the header alone, without the pixels; raises ValueError as `decode`."""
    with _one_line():
        height, width = _reader(data).size(data)
    return height, width


def _reader(data: bytes) -> ModuleType:
    return next((kind for kind in (jpeg, png, tiff, npy) if kind.matches(data)), pillow)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise nearly every kind of exception on bad bytes
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError):
            reason = f"the image is damaged ({type(error).__name__}: {reason})"
        raise ValueError(reason) from error


def _to_channels(pixels: Pixels, channels: int | None) -> Pixels:
    own = pixels.shape[2]
    if channels is None or channels == own:
        return pixels
    if not convertible(own, channels):
        raise ValueError(f"the image has {own} channels; expected {channels}")
    if channels == 3:
        return pixels.repeat(3, axis=2)
    grey = (pixels.astype(np.uint32) @ _LUMA + 32_768)[..., None] >> 16
    return grey.astype(np.uint8) if pixels.dtype == np.uint8 else grey.astype(np.uint16)


def _to_depth(pixels: Pixels, depth: int | None) -> Pixels:
    if depth == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * np.uint16(257)
    if depth == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels
