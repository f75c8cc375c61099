"""Decode what Pillow reads well: 8-bit PNG, WebP, AVIF, BMP, JPEG 2000, plain TIFF, and the JPEGs that
simplejpeg cannot read.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

from data_pipeline.decoders import orientation
from data_pipeline.decoders.pixels import NEWEST_RULES, PixelRules, Pixels, check_size

# Pillow's other formats are left out: some start other programs (EPS), others are not used for photos.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "JPEG2000", "TIFF")
_AVIF_HEADER = 2**14  # bytes that hold the box av1C, whose third byte says how many bits there are
_HIGH_DEPTH = 0x40
_GREY_MODES = {"1", "L", "LA", "La"}


def is_avif(data: bytes) -> bool:
    """Return whether the bytes begin like an AVIF, by the brand of its first box."""
    return data[4:12] in (b"ftypavif", b"ftypavis")


def orientation_of_avif(data: bytes) -> int:
    """Return the orientation tag of an AVIF; Pillow makes it of the boxes irot and imir, which turn it."""
    return orientation.valid(open_image(data, NEWEST_RULES).getexif().get(orientation.TAG))


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

    Raises ValueError for an AVIF of more than 8 bits, of which Pillow would drop some, and for an animation,
    except under rules 1, where its first frame is the image.
    """
    if is_avif(data) and data[(at := data.find(b"av1C", 0, _AVIF_HEADER)) + 6] & _HIGH_DEPTH and at > 0:
        raise ValueError("an AVIF of more than 8 bits; convert it to a 16-bit PNG, e.g. with avifdec")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("not an image, or damaged in its first bytes") from None
    check_size(image.height, image.width, 1)
    animated = ("PNG", "WEBP", "AVIF")
    frames = getattr(image, "n_frames", 1) if image.format in animated and rules > 1 else 1
    if frames > 1:
        raise ValueError(f"an animated {image.format} of {frames} frames; write each to a file of its own")
    return image
