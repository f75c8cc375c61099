"""What Pillow reads: PNG, WebP, BMP, plain TIFF, and the JPEG that `jpeg` leaves to it."""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

from data_pipeline.decoders.pixels import Pixels, check_size

# Not those of Pillow's formats that start other programs (EPS) or that nobody keeps photos in.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_GREY_MODES = {"1", "L", "LA", "La"}


def size(data: bytes) -> tuple[int, int]:
    """Height and width."""
    image = open_image(data)
    return image.height, image.width


def read(data: bytes) -> Pixels:
    """Pixels (H, W, 1) if grey, else (H, W, 3), of 8 bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which concerns nobody here
        image = open_image(data)
        pixels = np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """The image by its header, of an allowed size; its pixels are still packed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("not an image, or damaged in its first bytes") from None
    check_size(image.height, image.width, 1)
    return image
