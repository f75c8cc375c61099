"""Decode the bytes of one image file of any supported format.

The first bytes of a file determine its format. Each format has a module of its own with the functions
`matches`, `size` and `read`. Pixels are decoded by libjpeg-turbo (through simplejpeg), Pillow, tifffile,
imagecodecs and numpy; these modules only choose between them, check sizes before decoding, and close the gaps
that each module's docstring names. `intensity` turns numbers that are not yet brightness into pixels.
"""

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders import high_depth, jpeg, npy, orientation, pillow, png, tiff
from data_pipeline.decoders.intensity import NONE, Intensity, NeedsRule, NoValidValue, Valid, brightness
from data_pipeline.decoders.pixels import LUMA, NEWEST_RULES, Numbers, PixelRules, Pixels, convertible

_LUMA = np.rint(np.array(LUMA) * 2**16).astype(np.uint32)  # in units of 1/65536, as in Pillow

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp"}
_JPEG_2000 = {".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"}
EXTENSIONS = {*_JPEG, *_JPEG_2000, ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".npy"}
"""Extensions of image files, in lower case."""

_NO_MEMORY = re.compile(r"\b(?:out of|insufficient) memory\b|unable to allocate", re.IGNORECASE)
"""What libjpeg, Pillow and zlib say where Python would raise MemoryError."""
Shrink = Literal[1, 2, 4, 8]
"""Factors by which libjpeg-turbo can decode a JPEG at a smaller size."""


@overload
def decode(
    data: bytes,
    channels: int | None = ...,
    depth: Literal[8] = ...,
    shrink: Shrink = ...,
    rules: PixelRules = ...,
    intensity: Intensity = ...,
) -> NDArray[np.uint8]: ...
@overload
def decode(
    data: bytes,
    channels: int | None,
    depth: Literal[8, 16] | None,
    shrink: Shrink = ...,
    rules: PixelRules = ...,
    intensity: Intensity = ...,
) -> Pixels: ...
def decode(
    data: bytes,
    channels: int | None = None,
    depth: Literal[8, 16] | None = 8,
    shrink: Shrink = 1,
    rules: PixelRules = NEWEST_RULES,
    intensity: Intensity = NONE,
) -> Pixels:
    """Return the pixels (H, W, C) of an encoded image, uint8, or uint16 for depth 16; the largest value is
    white.

    C is `channels`, or the image's own number if that is None. 1 and 3 channels are converted into each
    other; any other number must be the image's own. For another depth, 8-bit values are multiplied by 257 and
    16-bit values rounded; with depth None the image keeps its own. Transparency is dropped. The
    image is turned by its orientation tag, as people see it. Grey pages of a TIFF are channels; an animation,
    or a TIFF of several pictures, is refused. Under a rule of `intensity` the image's own depth is 16.
    `Dataset.pixels` reads the images of a data set by the `rules` and the `intensity` under which it was
    packed.

    A JPEG may be returned at 1/`shrink` of its size, rounded up, which takes less time.

    Raises ValueError, with the reason in one line, if the bytes are not a complete image of a supported
    format, or if the image is larger than `pixels.check_size` allows; MemoryError if memory runs out.
    """
    return decode_valid(data, channels, depth, shrink, rules, intensity)[0]


def decode_valid(
    data: bytes,
    channels: int | None,
    depth: Literal[8, 16] | None,
    shrink: Shrink = 1,
    rules: PixelRules = NEWEST_RULES,
    intensity: Intensity = NONE,
) -> tuple[Pixels, Valid | None]:
    """Return what `decode` returns, and which of its values (H, W, C) are valid; None if all are."""
    with _one_line():
        valid = None
        if jpeg.matches(data) and not intensity.is_stated and not high_depth.is_12_bit_jpeg(data):
            pixels = jpeg.read(data, channels, shrink, rules)
        else:
            pixels, valid = brightness(_numbers(data, rules), intensity)
        tag = _tag(data, rules)
        pixels = _to_depth(_to_channels(orientation.upright(pixels, tag), channels), depth)
        if valid is not None:
            valid = orientation.upright(valid, tag)
            if valid.shape != pixels.shape:  # grey became colour or the reverse
                valid = np.broadcast_to(np.logical_and.reduce(valid, axis=2, keepdims=True), pixels.shape)
        return pixels, valid


def _numbers(data: bytes, rules: PixelRules) -> Numbers:
    """Return the values of an image that is no JPEG of 8 bits; raise ValueError for one, as it is for
    display.
    """
    if jpeg.matches(data):
        if high_depth.is_12_bit_jpeg(data):
            return high_depth.read_12_bit_jpeg(data)
        raise ValueError("a JPEG holds brightness, not measurements; leave --intensity out for JPEG files")
    if png.matches(data):
        return Numbers(png.read(data, rules))
    if tiff.matches(data):
        return tiff.read(data, rules)
    if high_depth.matches(data):
        return high_depth.read(data, rules)
    return npy.read(data) if npy.matches(data) else Numbers(pillow.read(data, rules))


def largest_shrink(limit: float) -> Shrink:
    """Return the largest factor for a smaller JPEG that is at most `limit`; 1 if no factor is."""
    factors: tuple[Shrink, ...] = (8, 4, 2)
    return next((factor for factor in factors if factor <= limit), 1)


def size(data: bytes, rules: PixelRules = NEWEST_RULES) -> tuple[int, int]:
    """Return height and width of what `decode` returns, from the headers alone.

    Under rules 1 they are those before a TIFF is turned. Raises ValueError as `decode` does.
    """
    with _one_line():
        if jpeg.matches(data) and high_depth.is_12_bit_jpeg(data):
            height, width = high_depth.size_of_12_bit_jpeg(data)
        elif jpeg.matches(data):
            height, width = jpeg.size(data, rules)
        elif png.matches(data):
            height, width = png.size(data, rules)
        elif tiff.matches(data):
            height, width = tiff.size(data, rules)
        elif high_depth.matches(data):
            height, width = high_depth.size(data)
        else:
            height, width = npy.size(data) if npy.matches(data) else pillow.size(data, rules)
        return orientation.size_upright(height, width, _tag(data, rules))


def _tag(data: bytes, rules: PixelRules) -> int:
    """Return the orientation tag by which the stored pixels are turned; 1 for a TIFF, which `tiff` turns."""
    if rules == 1:
        return 1
    if jpeg.matches(data):
        return orientation.of_jpeg(data)
    if data[:4] == b"\x89PNG":
        return orientation.of_png(data)
    if data[:4] == b"RIFF":
        return orientation.of_webp(data)
    return pillow.orientation_of_avif(data) if pillow.is_avif(data) else 1


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn whatever a decoder raises into a ValueError with the reason in one line.

    MemoryError, `NoValidValue` and `NeedsRule` pass unchanged; the last two are such a ValueError already.

    A sound image that finds no memory is not damaged. How much a damaged one can ask for is limited by
    `pixels.check_size`.
    """
    try:
        yield
    except (MemoryError, NeedsRule, NoValidValue):
        raise
    except Exception as error:  # decoders raise nearly every kind of exception for damaged files
        reason = " ".join(str(error).split())
        if _NO_MEMORY.search(reason) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            raise MemoryError(reason) from error
        if not isinstance(error, ValueError | OSError):
            reason = f"the image is damaged ({type(error).__name__}: {reason})"
        raise ValueError(reason) from error


def _to_channels(pixels: Pixels, channels: int | None) -> Pixels:
    """Convert between grey and RGB; raise ValueError for any other change of the number of channels."""
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
    """Convert between uint8 and uint16 so that white stays white; None keeps the type."""
    if depth == 16 and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * np.uint16(257)
    if depth == 8 and pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels
