"""Decode what Pillow reads well: 8-bit PNG, WebP, BMP, plain TIFF, and the JPEGs that simplejpeg cannot
read.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

from data_pipeline.decoders import orientation
from data_pipeline.decoders.pixels import PixelRules, Pixels, check_size

# Pillow's other formats are left out: some start other programs (EPS), others are not used for photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_GREY_MODES = {"1", "L", "LA", "La"}


def size(data: bytes, rules: PixelRules) -> tuple[int, int]:
    """Return height and width, as they are stored."""
    image = open_image(data, rules)
    return image.height, image.width


def read(data: bytes, rules: PixelRules, page: int = 0) -> Pixels:
    """Return 8-bit pixels as they are stored: (H, W, 1) for grey images, else (H, W, 3).

    `page` counts the pages of a TIFF from 0. Under rules 1 a TIFF is turned by its orientation tag.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about unusual metadata do not matter here
        image = open_image(data, rules)
        if image.format == "TIFF" and rules > 1:
            image.seek(page)
            image.getexif()[orientation.TAG] = 1  # Pillow would turn a TIFF, but no other format
        pixels = np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def open_image(data: bytes, rules: PixelRules) -> ImageFile.ImageFile:
    """Open an image by its header and check its size; the pixels are not decoded yet.

    Raises ValueError for an animation, except under rules 1, where its first frame is the image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("not an image, or damaged in its first bytes") from None
    check_size(image.height, image.width, 1)
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") and rules > 1 else 1
    if frames > 1:
        raise ValueError(f"an animated {image.format} of {frames} frames; write each to a file of its own")
    return image
