"""Decode JPEG 2000, and JPEG of 12 bits: by Pillow where that keeps every bit, else by imagecodecs.

Pillow gives at most 8 bits a channel of colour images, and does not read JPEG of 12 bits at all. imagecodecs
is an extra (`isotorus[geo]`, `[medical]` or `[microscopy]`).
"""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import Numbers, PixelRules, check_size

_START = b"\xff\x4f\xff\x51"  # of a JPEG 2000 code stream: SOC and SIZ
_FILE = b"\0\0\0\x0cjP  \r\n\x87\n"
_FRAME = re.compile(rb"\xff[\xc0-\xc2]..(.)(..)(..)", re.DOTALL)
_HEADER = 2**16


class _Header(NamedTuple):
    """Size, and bits of each channel; signed numbers have negative ones."""

    height: int
    width: int
    bits: tuple[int, ...]


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a JPEG 2000 (ISO 15444-1: a code stream, or a file around it)."""
    return data[:12] == _FILE or data[:4] == _START


def is_12_bit_jpeg(data: bytes) -> bool:
    """Return whether a JPEG has 12 bits a channel, by its frame header."""
    frame = _FRAME.search(data, 2, _HEADER)
    return frame is not None and frame[1] == b"\x0c"


def size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG 2000."""
    return _header(data)[:2]


def read(data: bytes, rules: PixelRules) -> Numbers:
    """Return the values (H, W, C) of a JPEG 2000; raises ValueError if it is damaged, or
    needs imagecodecs and that is missing.
    """
    height, width, bits = _header(data)
    check_size(height, width, len(bits))
    if set(bits) == {8} and len(bits) in (1, 3, 4):
        return Numbers(pillow.read(data, rules))
    return Numbers(_with_imagecodecs("jpeg2k_decode", data, f"a JPEG 2000 of {abs(bits[0])} bits"))


def size_of_12_bit_jpeg(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG of 12 bits, as they are stored."""
    frame = _FRAME.search(data, 2, _HEADER)
    assert frame is not None
    return int.from_bytes(frame[2], "big"), int.from_bytes(frame[3], "big")


def read_12_bit_jpeg(data: bytes) -> Numbers:
    """Return the values (H, W, C) of a JPEG of 12 bits, from 0 to 4095; raises ValueError as `read` does."""
    check_size(*size_of_12_bit_jpeg(data), 3)
    return Numbers(_with_imagecodecs("jpeg8_decode", data, "a JPEG of 12 bits"))


def _header(data: bytes) -> _Header:
    """Return the header of a JPEG 2000; raises ValueError if it is not there."""
    at = data.find(_START)
    channels = int.from_bytes(data[at + 40 : at + 42], "big")
    depths = data[at + 42 : at + 42 + 3 * channels : 3]
    if at < 0 or not channels or len(depths) < channels:
        raise ValueError("the JPEG 2000 is damaged: its header is not complete")
    # Bytes 8 to 24 are the end and the beginning of the image on its grid: width, height, left, top.
    right, bottom, left, top = (int.from_bytes(data[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    bits = tuple((each & 127) + 1 if each < 128 else -(each & 127) - 1 for each in depths)
    return _Header(bottom - top, right - left, bits)


def _with_imagecodecs(name: str, data: bytes, what: str) -> NDArray[Any]:
    """Return what a decoder of imagecodecs makes of the bytes, as (H, W, C)."""
    try:
        import imagecodecs
    except ImportError:
        raise ValueError(f'{what} is read by imagecodecs; pip install "isotorus[geo]"') from None
    values: NDArray[Any] = np.asarray(getattr(imagecodecs, name)(data))
    return values.reshape(*values.shape[:2], -1)
