"""Decode what Pillow reads well: 8-bit PNG, WebP, BMP, plain TIFF, and the JPEGs that simplejpeg cannot
read.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

from data_pipeline.decoders.pixels import Pixels, check_size

# Pillow's other formats are left out: some start other programs (EPS), others are not used for photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_GREY_MODES = {"1", "L", "LA", "La"}


def size(data: bytes) -> tuple[int, int]:
    """Return height and width."""
    image = open_image(data)
    return image.height, image.width


def read(data: bytes) -> Pixels:
    """Return 8-bit pixels: (H, W, 1) for grey images, else (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about unusual metadata do not matter here
        image = open_image(data)
        pixels = np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image by its header and check its size; the pixels are not decoded yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("not an image, or damaged in its first bytes") from None
    check_size(image.height, image.width, 1)
    return image
