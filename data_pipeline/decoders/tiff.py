"""Decode TIFF files of 8 or 16 bits and any number of bands; one-band pages become channels.

tifffile decodes the pixels. It does not limit the size that compressed data expands to, so sizes are checked
here first.
"""

import importlib.util
import io
import itertools
import logging
import math
import zlib

import numpy as np
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage

from data_pipeline.decoders import pillow
from data_pipeline.decoders.pixels import Pixels, check_size

_MOST_PAGES = 1024
_DEFLATE = (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)
_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
_GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its warnings about unusual tags do not matter here


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def size(data: bytes) -> tuple[int, int]:
    """Return height and width of the first page."""
    with TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        return page.imagelength, page.imagewidth


def read(data: bytes) -> Pixels:
    """Return pixels (H, W, C): all pages as channels if each has one band and the same size, else the first
    page.

    Raises ValueError for types, colour spaces and compressions that are not supported.
    """
    with TiffFile(io.BytesIO(data)) as file:
        pages = _pages(file)
        height, width = pages[0].imagelength, pages[0].imagewidth
        check_size(height, width, len(pages) * pages[0].samplesperpixel)
        if len(pages) == 1 and _is_plain(pages[0]):
            return pillow.read(data)
        return np.concatenate([_read(data, page) for page in pages], axis=2)


def _pages(file: TiffFile) -> list[TiffPage]:
    """Return the pages that form the image: all of them if they are grey and alike, else the first."""
    pages: list[TiffPage] = []
    for page in itertools.islice(file.pages, _MOST_PAGES + 1):
        assert isinstance(page, TiffPage)
        pages.append(page)
    if len(pages) > _MOST_PAGES:
        raise ValueError(f"a TIFF of more than {_MOST_PAGES} pages")
    if not pages:
        raise ValueError("a TIFF without an image")
    first = pages[0]
    alike = all(
        page.samplesperpixel == 1
        and page.photometric in _GREY
        and (page.imagelength, page.imagewidth, page.dtype)
        == (first.imagelength, first.imagewidth, first.dtype)
        for page in pages
    )
    return pages if alike else pages[:1]


def _is_plain(page: TiffPage) -> bool:
    """Return whether Pillow reads the page exactly: up to 8 bits, grey or colour, perhaps with
    transparency.
    """
    if page.photometric in (*_GREY, PHOTOMETRIC.PALETTE):
        bands = 1
    else:
        bands = 4 if page.photometric == PHOTOMETRIC.SEPARATED else 3
    return page.bitspersample <= 8 and _bands(page) == bands and page.sampleformat == SAMPLEFORMAT.UINT


def _bands(page: TiffPage) -> int:
    """Return the number of bands without those of transparency, which come last."""
    return page.samplesperpixel - sum(extra in _ALPHA for extra in page.extrasamples)


def _read(data: bytes, page: TiffPage) -> Pixels:
    """Return pixels (H, W, bands) of a page."""
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        kind = page.dtype or f"{page.bitspersample}-bit"
        raise ValueError(f"a TIFF of {kind} pixels; expected 8 or 16 bits unsigned")
    if page.photometric not in (*_GREY, PHOTOMETRIC.RGB):
        raise ValueError(f"a TIFF of {page.bitspersample}-bit {page.photometric!r}; expected grey or RGB")
    _check_pieces(data, page)
    planes, depth, height, width, bands = page.shaped
    if depth != 1:
        raise ValueError("a TIFF of volumes; expected flat pages")
    pixels = page.asarray(squeeze=False, maxworkers=1).reshape(planes, height, width, bands)
    pixels = pixels.transpose(1, 2, 0, 3).reshape(height, width, planes * bands)[..., : _bands(page)]
    return ~pixels if page.photometric == PHOTOMETRIC.MINISWHITE else pixels


def _check_pieces(data: bytes, page: TiffPage) -> None:
    """Raise ValueError if strips or tiles are missing, too large, or compressed in an unsupported way."""
    if len(page.dataoffsets) != math.prod(page.chunked):
        raise ValueError(f"a TIFF of {math.prod(page.chunked)} strips or tiles has {len(page.dataoffsets)}")
    size = math.prod(page.chunks)
    check_size(1, 1, size)
    if page.compression in _DEFLATE:
        # Decompress here with a limit first: tifffile has none.
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            unpacker = zlib.decompressobj()
            unpacker.decompress(data[offset : offset + count], size * page.bitspersample // 8 + 1)
            if not unpacker.eof:
                raise ValueError("a strip or tile of the TIFF is cut off, or larger than it should be")
    elif page.compression != COMPRESSION.NONE and not importlib.util.find_spec("imagecodecs"):
        raise ValueError(f"a TIFF of compression {page.compression!r}; to read it: pip install imagecodecs")
