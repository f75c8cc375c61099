"""Bytes of one image file → pixels."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_LONGEST_SIDE = 65_535


def decode(data: bytes, channels: int | None) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of an encoded image; C = `channels`, or with None 1 if it is greyscale, else 3.

    16-bit greyscale is scaled to 8 bit, transparency is dropped, of several frames the first is
    taken, and an orientation tag is not applied.

    Raises ValueError with the reason in one line if the bytes are no whole image of a supported
    kind, or would unpack to more pixels than Pillow holds safe (`Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, which concerns nobody here, and of decompression bombs.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if max(image.size) > _LONGEST_SIDE:
                raise ValueError(f"a side of {max(image.size)} pixels; at most {_LONGEST_SIDE} are supported")
            if channels is None:
                channels = 1 if image.mode in _GREY_MODES else 3
            pixels = np.array(_eight_bit(image).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception on bad bytes
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image, or a kind of image that Pillow cannot read"
        raise ValueError(" ".join(reason.split())) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65_535:
        raise ValueError("32-bit pixels are not supported")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
