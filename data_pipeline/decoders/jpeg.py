"""Decode JPEG files with libjpeg-turbo (simplejpeg), at a fraction of their size where that is enough."""

from typing import NamedTuple

import numpy as np
import simplejpeg

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import Pixels, check_size

_MOST_SCANS = 100  # progressive images usually have about ten


class _Header(NamedTuple):
    """Size, colour space and chroma subsampling of a JPEG."""

    height: int
    width: int
    colours: str
    sampling: str


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def size(data: bytes) -> tuple[int, int]:
    """Return height and width."""
    header = _header(data)
    return header[:2] if header else pillow.size(data)


def read(data: bytes, channels: int | None, shrink: int) -> Pixels:
    """Return pixels at 1/`shrink` of the size, rounded up: (H, W, 1) for grey images or `channels` 1, else
    (H, W, 3).

    Images that only Pillow can read are returned at full size, whatever `shrink` is. Raises ValueError for
    progressive images of more than 100 scans.
    """
    # Each scan costs a pass over the whole image, so a small file with many scans could take hours.
    if _scans(data) > _MOST_SCANS:
        raise ValueError(f"a JPEG of more than {_MOST_SCANS} scans")
    header = _header(data)
    if header is None or header.colours in ("CMYK", "YCCK"):
        return pillow.read(data)
    check_size(header.height, header.width, 4)
    grey = channels == 1 or (channels is None and header.colours == "Gray")
    least = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)}
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", **(least if shrink > 1 else {}))
    except ValueError:
        # Pillow accepts unusual but harmless bytes, which some old cameras wrote, and rejects damaged files.
        return pillow.read(data)


def _header(data: bytes) -> _Header | None:
    """Return the header; None if simplejpeg does not support this JPEG, for example its chroma
    subsampling.
    """
    try:
        return _Header(*simplejpeg.decode_jpeg_header(data, strict=False))
    except (ValueError, KeyError):
        return None


def _scans(data: bytes) -> int:
    """Return an upper bound on the number of scans: how often the marker FF DA occurs.

    Counting with numpy is several times faster than `bytes.count`.
    """
    values = np.frombuffer(data, dtype=np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))
