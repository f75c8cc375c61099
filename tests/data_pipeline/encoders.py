"""Image files of every kind, made for the tests without the code under test."""

import io
import struct
import zlib

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def npy(array: NDArray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def tiff(array: NDArray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def deep_png(pixels: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of (H, W, 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA), by the specification."""
    height, width, channels = pixels.shape
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
