"""Decode TIFF files of any number of bands and any type of numbers, which tifffile or Pillow reads.

tifffile does not limit the size that compressed data expands to, so sizes are checked here first.
"""

import importlib.util
import io
import logging
import math
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT, TiffFile, TiffPage

from data_pipeline.decoders import orientation, pillow
from data_pipeline.decoders.pixels import Numbers, PixelRules, check_size, is_number
from data_pipeline.decoders.tiff_pages import GREY, Image, image_before, image_of, tag_of

GDAL_NODATA: Final = 42113
"""A tag of GDAL: the value of pixels without a measurement, as text."""
_DEFLATE = (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)
_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its warnings about unusual tags do not matter here


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a TIFF or BigTIFF."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def size(data: bytes, rules: PixelRules) -> tuple[int, int]:
    """Return height and width of the image."""
    with TiffFile(io.BytesIO(data)) as file:
        if rules == 1:
            page = file.pages.first
            return page.imagelength, page.imagewidth
        page = image_of(file).pages[0]
        return orientation.size_upright(page.imagelength, page.imagewidth, tag_of(page))


def read(data: bytes, rules: PixelRules) -> Numbers:
    """Return the values (H, W, C), as people see the image; C is the number of bands, or of pages or planes
    of one band.

    Raises ValueError for types, colour spaces and compressions that are not supported.
    """
    with TiffFile(io.BytesIO(data)) as file:
        if rules == 1:  # Pillow turns what it reads, nothing else is turned
            image, tag = image_before(file), 1
        else:
            image = image_of(file)
            tag = tag_of(image.pages[0])
        first = image.pages[0]
        values = orientation.upright(_stored(data, image, rules), tag)
        return Numbers(values, _nodata(first), first.photometric == PHOTOMETRIC.MINISWHITE)


def _nodata(page: TiffPage) -> tuple[float, ...]:
    """Return the finite value that GDAL's tag names as nodata, if it names one."""
    try:
        value = float(str(page.tags.valueof(GDAL_NODATA, "")).strip(" \0"))
    except ValueError:
        return ()
    return (value,) if math.isfinite(value) else ()


def _stored(data: bytes, image: Image, rules: PixelRules) -> NDArray[Any]:
    """Return the values (H, W, C) of an image as they are stored."""
    first = image.pages[0]
    height, width = first.imagelength, first.imagewidth
    check_size(height, width, len(image.pages) * first.samplesperpixel * image.planes)
    if image.planes > 1:
        return _read_planes(data, first, image.planes)
    if len(image.pages) == 1 and _is_plain(first):
        pixels = pillow.read(data, rules, first.index)
        return ~pixels if first.photometric == PHOTOMETRIC.MINISWHITE else pixels  # Pillow inverts these
    each = [(page, _read(data, page)) for page in image.pages]
    alike = [values if page.photometric == first.photometric else ~values for page, values in each]
    return np.concatenate(alike, axis=2)


def _is_plain(page: TiffPage) -> bool:
    """Return whether Pillow reads the page exactly: 8 bits, or up to 4 in one band, grey or colour, perhaps
    with transparency. Pillow reads no big-endian BigTIFF.
    """
    if page.parent.is_bigtiff and page.parent.byteorder == ">":
        return False
    if page.photometric in (*GREY, PHOTOMETRIC.PALETTE):
        bands = 1
    else:
        bands = 4 if page.photometric == PHOTOMETRIC.SEPARATED else 3
    known = page.bitspersample == 8 or (page.bitspersample in (1, 2, 4) and page.samplesperpixel == 1)
    return known and _bands(page) == bands and page.sampleformat == SAMPLEFORMAT.UINT


def _bands(page: TiffPage) -> int:
    """Return the number of bands without those of transparency, which come last."""
    return page.samplesperpixel - sum(extra in _ALPHA for extra in page.extrasamples)


def _check_type(page: TiffPage) -> None:
    """Raise ValueError unless a pixel is a number of 8, 16, 32 or 64 bits in each band."""
    bits = page.bitspersample
    whole = page.dtype is not None and page.dtype.itemsize * 8 == bits
    if page.dtype is None or not whole or not is_number(page.dtype):
        kind = page.dtype if whole else f"{bits}-bit"
        raise ValueError(f"a TIFF of {kind} pixels; expected numbers of 8, 16, 32 or 64 bits")


def _read(data: bytes, page: TiffPage) -> NDArray[Any]:
    """Return the values (H, W, bands) of a page."""
    _check_type(page)
    if page.photometric not in (*GREY, PHOTOMETRIC.RGB):
        raise ValueError(f"a TIFF of {page.bitspersample}-bit {page.photometric!r}; expected grey or RGB")
    _check_pieces(data, page)
    planes, depth, height, width, bands = page.shaped
    if depth != 1:
        raise ValueError("a TIFF of volumes; expected flat pages")
    pixels = page.asarray(squeeze=False, maxworkers=1).reshape(planes, height, width, bands)
    return pixels.transpose(1, 2, 0, 3).reshape(height, width, planes * bands)[..., : _bands(page)]


def _read_planes(data: bytes, page: TiffPage, planes: int) -> NDArray[Any]:
    """Return the values (H, W, planes) of uncompressed planes that begin where the page's pixels do."""
    _check_type(page)
    assert page.dtype is not None
    kind = page.dtype.newbyteorder(page.parent.byteorder)
    shape = (planes, page.imagelength, page.imagewidth)
    start, values = page.dataoffsets[0], math.prod(shape)
    if start + values * kind.itemsize > len(data):
        raise ValueError(f"a TIFF of {planes} planes that is cut off")
    pixels = np.frombuffer(data, kind, values, start).reshape(shape).transpose(1, 2, 0)
    return pixels.astype(page.dtype.newbyteorder("="), order="C")


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
