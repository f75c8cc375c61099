"""JPEG through libjpeg-turbo, at a fraction of the size where that is enough."""

from typing import NamedTuple

import numpy as np
import simplejpeg

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import Pixels, check_size

_MOST_SCANS = 100  # of a progressive image; about ten are usual


class _Header(NamedTuple):
    height: int
    width: int
    colours: str
    sampling: str


def matches(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def size(data: bytes) -> tuple[int, int]:
    """Height and width."""
    header = _header(data)
    return header[:2] if header else pillow.size(data)


def read(data: bytes, channels: int | None, shrink: int) -> Pixels:
    """Pixels at 1/`shrink` of the size, rounded up: (H, W, 1) if grey or asked for, else (H, W, 3).

    What Pillow alone can read comes in full size, whatever `shrink` says.
    """
    # Every scan costs a pass over the whole image, however few bytes it has.
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
        # Pillow tells bytes that are odd but harmless, as old cameras wrote them, from damaged ones.
        return pillow.read(data)


def _header(data: bytes) -> _Header | None:
    """None if libjpeg-turbo's simple interface does not know what this is, e.g. for unusual sampling."""
    try:
        return _Header(*simplejpeg.decode_jpeg_header(data, strict=False))
    except (ValueError, KeyError):
        return None


def _scans(data: bytes) -> int:
    """Occurrences of the marker FF DA; several times faster than `bytes.count`."""
    values = np.frombuffer(data, dtype=np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))
