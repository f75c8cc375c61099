"""Images of any depth and number of channels as pictures that a page can hold."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALL = 64
"""Up to this side pictures are kept without loss; larger ones become JPEGs."""

Floats = NDArray[np.float32]


def unit(image: NDArray[np.uint8] | NDArray[np.uint16]) -> Floats:
    """An image's integers on the scale where white is 1."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def stretch(image: Floats, depth: int) -> tuple[Floats, Floats]:
    """The values (C,) of an image (H, W, C) that a picture of it shows as black and as white.

    0 and 1 for images that screens are made for. Otherwise the 1st and the 99th percentile: 16-bit
    images seldom fill their range. Those of colour are taken over all channels, so that hues stay.
    """
    channels = image.shape[2]
    if depth == 8 and channels in (1, 3):
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    axes = (0, 1, 2) if channels == 3 else (0, 1)
    low, high = np.percentile(image, (1, 99), axis=axes).astype(np.float32)
    high = np.where(high > low, high, low + 1)
    return np.broadcast_to(low, channels), np.broadcast_to(high, channels)


def explain(channels: int, depth: int) -> str:
    """What `stretch` and `picture` do to such images, for those who look at them; often nothing."""
    said = []
    if channels not in (1, 3):
        said.append(
            f"Of the {channels} channels, the first three are shown as red, green and blue."
            if channels > 3
            else "Of the 2 channels, the first is shown."
        )
    if depth == 16 or channels not in (1, 3):
        each = "" if channels in (1, 3) else ", each channel by itself"
        said.append(f"Values are stretched between the original's 1st and 99th percentile{each}.")
    return " ".join(said)


def picture(image: Floats, low: Floats, high: Floats, longest: int) -> str:
    """A data URI of an image (H, W, C), no side longer than `longest`; `low` is black, `high` white."""
    channels = 1 if image.shape[2] < 3 else 3
    scaled = ((image - low) / (high - low))[..., :channels].clip(0, 1)
    pixels = np.rint(scaled * 255).astype(np.uint8)
    shown = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    shown.thumbnail((longest, longest), Image.Resampling.BOX)
    stream = io.BytesIO()
    if max(shown.size) <= SMALL:
        shown.save(stream, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    shown.save(stream, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
