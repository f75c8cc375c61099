"""Decode JPEG files with libjpeg-turbo (simplejpeg), at a fraction of their size where that is enough."""

import re
from typing import NamedTuple

import numpy as np
import simplejpeg

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import PixelRules, Pixels, check_size

_MOST_SCANS = 100  # progressive images usually have about ten
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")  # not a data byte, a restart marker or a fill byte


class _Header(NamedTuple):
    """Size, colour space and chroma subsampling of a JPEG."""

    height: int
    width: int
    colours: str
    sampling: str


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def size(data: bytes, rules: PixelRules) -> tuple[int, int]:
    """Return height and width, as they are stored."""
    header = _header(data)
    return header[:2] if header else pillow.size(data, rules)


def read(data: bytes, channels: int | None, shrink: int, rules: PixelRules) -> Pixels:
    """Return pixels as they are stored, at 1/`shrink` of the size, rounded up: (H, W, 1) for grey images or
    `channels` 1, else (H, W, 3).

    Whatever follows the end-of-image marker is ignored: further pictures, films, raw frames. Images that only
    Pillow can read are returned at full size, whatever `shrink` is. Raises ValueError for progressive images
    of more than 100 scans, and for images that are cut off.
    """
    # Each scan costs a pass over the whole image, so a small file with many scans could take hours. What
    # follows the image counts as well at first, because that is much faster than to look for the image's end.
    if _most_scans(data) > _MOST_SCANS and _scans_and_end(data)[0] > _MOST_SCANS:
        raise ValueError(f"a JPEG of more than {_MOST_SCANS} scans")
    header = _header(data)
    if header is None or header.colours in ("CMYK", "YCCK"):
        return _read_with_pillow(data, rules)
    check_size(header.height, header.width, 4)
    grey = channels == 1 or (channels is None and header.colours == "Gray")
    least = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)}
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", **(least if shrink > 1 else {}))
    except ValueError as error:
        if rules > 1 and "premature end" in str(error).lower():
            raise ValueError("the JPEG is truncated: part of its pixels is missing") from None
        # Pillow accepts unusual but harmless bytes, which some old cameras wrote, and rejects damaged files.
        return _read_with_pillow(data, rules)


def _read_with_pillow(data: bytes, rules: PixelRules) -> Pixels:
    """Return pixels that Pillow decodes, which does not notice if what follows a cut-off image is no JPEG."""
    if rules > 1 and _scans_and_end(data)[1] is None:
        raise ValueError("the JPEG is truncated: its end-of-image marker is missing")
    return pillow.read(data, rules)


def _header(data: bytes) -> _Header | None:
    """Return the header; None if simplejpeg does not support this JPEG, for example its chroma
    subsampling.
    """
    try:
        return _Header(*simplejpeg.decode_jpeg_header(data, strict=False))
    except (ValueError, KeyError):
        return None


def _most_scans(data: bytes) -> int:
    """Return an upper bound on the number of scans: how often the bytes FF DA occur in the whole file.

    Counting with numpy is several times faster than `bytes.count`.
    """
    values = np.frombuffer(data, dtype=np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))


def _scans_and_end(data: bytes) -> tuple[int, int | None]:
    """Return the number of scans, and the position after the end-of-image marker; None if that is missing.

    Markers are followed as libjpeg does: segments are skipped by their length, and after the header of a
    scan, or where a marker should be and is not, the next marker is searched.
    """
    scans, at = 0, 2
    while (found := _MARKER.search(data, at)) is not None:
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:
            return scans, at
        scans += marker == 0xDA
        if marker != 0x01:  # TEM has no length
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return scans, None
