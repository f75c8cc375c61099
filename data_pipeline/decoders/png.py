"""PNG of 16 bits a channel, of which Pillow keeps 8 unless it is grey."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import Pixels

_GREY, _GREY_ALPHA, _RGB = 0, 4, 2


def matches(data: bytes) -> bool:
    """The header must come first, and its ninth byte says how many bits a channel has."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[24:25] == b"\x10"


def size(data: bytes) -> tuple[int, int]:
    """Height and width."""
    return pillow.size(data)


def read(data: bytes) -> Pixels:
    """Pixels (H, W, 1 or 3) of 16 bit; transparency is dropped."""
    colours = data[25]
    if colours == _GREY:
        return np.array(pillow.open_image(data)).astype(np.uint16)[..., None]
    if colours == _GREY_ALPHA:
        pixel = _unpack(data, "RGBA")  # whose four bytes are the two of grey, high first, and two of alpha
        return _join(pixel[..., :1], pixel[..., 1:2])
    # Pillow keeps the high byte of what it believes to be a number of this byte order.
    kind = "RGB" if colours == _RGB else "RGBA"
    return _join(_unpack(data, f"{kind};16B")[..., :3], _unpack(data, f"{kind};16L")[..., :3])


def _unpack(data: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """Pixels as Pillow makes them of bytes that it takes to be in `raw_mode`."""
    image = pillow.open_image(data)
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    return np.array(image)


def _join(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return high.astype(np.uint16) * np.uint16(256) + low
