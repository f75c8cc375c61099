"""Decode PNG files of 16 bits a channel, which Pillow reduces to 8 bits unless they are grey.

The file is decoded twice in Pillow's raw modes, once for the high and once for the low bytes. This avoids a
further dependency such as OpenCV or imagecodecs for one rare format.
"""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import PixelRules, Pixels

_GREY, _GREY_ALPHA, _RGB = 0, 4, 2


def matches(data: bytes) -> bool:
    """Return whether the bytes are a PNG of 16 bits a channel (byte 25 of a PNG is its bit depth)."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def size(data: bytes, rules: PixelRules) -> tuple[int, int]:
    """Return height and width, as they are stored."""
    return pillow.size(data, rules)


def read(data: bytes, rules: PixelRules) -> Pixels:
    """Return 16-bit pixels as they are stored, (H, W, 1) or (H, W, 3); transparency is dropped."""
    colours = data[25]
    if colours == _GREY:
        return np.array(pillow.open_image(data, rules)).astype(np.uint16)[..., None]
    if colours == _GREY_ALPHA:
        pixel = _unpack(
            data, "RGBA", rules
        )  # its four bytes are two of grey, high byte first, and two of alpha
        return _join(pixel[..., :1], pixel[..., 1:2])
    # Pillow keeps the high byte of each 16-bit number in the byte order named: B is big endian, L little.
    kind = "RGB" if colours == _RGB else "RGBA"
    high, low = (_unpack(data, f"{kind};16{order}", rules)[..., :3] for order in "BL")
    return _join(high, low)


def _unpack(data: bytes, raw_mode: str, rules: PixelRules) -> NDArray[np.uint8]:
    """Return the bytes (H, W, bands) that Pillow decodes when it reads the data as `raw_mode`."""
    image = pillow.open_image(data, rules)
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    return np.array(image)


def _join(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Combine high and low bytes into 16-bit values."""
    return high.astype(np.uint16) * np.uint16(256) + low
