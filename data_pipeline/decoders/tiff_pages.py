"""Choose the pages of a TIFF that are its image.

Masks, pages marked as reduced (NewSubfileType or SubfileType) and pages at most half as high and half as
wide as the largest are thumbnails or pyramid levels, and are left out. If all other pages are grey and alike,
each is a channel. Planes that the file's metadata (ImageJ, OME, tifffile, microscopes) call depth or
time are no channels. A file that holds anything else beyond its image is refused.
"""

import itertools
import math
import re
from typing import NamedTuple

from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from data_pipeline.decoders import orientation

GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
"""Colour spaces of a single grey band."""
_MOST_PAGES = 1024
_ADVICE = "write each to a file of its own"
STACKED = ("shaped", "imagej", "lsm", "mmstack", "fluoview", "stk", "nih", "scanimage")
"""Kinds of metadata, as tifffile names them, that say what the planes of a file are."""
_ONE_DIRECTORY = ("shaped", "imagej", "stk")
"""Kinds of metadata whose files may hold several planes behind a single page."""
CHANNEL_AXES = "CSEIQ"
"""Axes of channels in tifffile's letters: channel, sample, wavelength, and two for unnamed planes."""
_AXIS_NAMES = {"Z": "depths", "T": "times"}


class Image(NamedTuple):
    """The pages of an image."""

    pages: list[TiffPage]
    """One page, or a grey page for each channel."""
    planes: int = 1
    """Number of planes that are stored one behind the other where the first page's pixels begin."""


def image_of(file: TiffFile) -> Image:
    """Return the image of a TIFF; raise ValueError if it holds several, or a stack of depths or times."""
    pages = _full_size(_all(file))
    first = pages[0]
    for page in pages[1:]:
        # A page without an orientation tag is turned as the first page is.
        turned_alike = orientation.TAG not in page.tags or tag_of(page) == tag_of(first)
        if _kind(page) != _kind(first) or not turned_alike:
            raise ValueError(
                f"a TIFF of several pictures: page {page.index + 1} has another size, type or orientation "
                f"than page {first.index + 1}; {_ADVICE}"
            )
    if len(pages) > 1 and not _is_grey(first):
        raise ValueError(f"a TIFF of {len(pages)} pictures, not of one grey page for each channel; {_ADVICE}")
    if len(pages) > 1 and file.is_ome:
        _check_ome(file, len(pages))
    elif len(pages) > 1 or any(getattr(file, f"is_{kind}") for kind in _ONE_DIRECTORY):
        return Image(pages, _planes_behind(file, pages))
    return Image(pages)


def image_before(file: TiffFile) -> Image:
    """Return the image of a TIFF by the first pixel rules: all pages if they are grey and alike, else the
    first.
    """
    pages = _all(file)
    first = pages[0]
    alike = all(
        _is_grey(page)
        and (page.imagelength, page.imagewidth, page.dtype)
        == (first.imagelength, first.imagewidth, first.dtype)
        for page in pages
    )
    return Image(pages if alike else pages[:1])


def tag_of(page: TiffPage) -> int:
    """Return the orientation tag of a page."""
    return orientation.valid(page.tags.valueof(orientation.TAG, 1))


def _all(file: TiffFile) -> list[TiffPage]:
    """Return all pages; raise ValueError if there are none, or more than 1024."""
    pages: list[TiffPage] = []
    for page in itertools.islice(file.pages, _MOST_PAGES + 1):
        assert isinstance(page, TiffPage)
        pages.append(page)
    if len(pages) > _MOST_PAGES:
        raise ValueError(f"a TIFF of more than {_MOST_PAGES} pages")
    if not pages:
        raise ValueError("a TIFF without an image")
    return pages


def _full_size(pages: list[TiffPage]) -> list[TiffPage]:
    """Return the pages without masks, thumbnails and pyramid levels.

    Raises ValueError if a full-size image is in a sub-directory of a page, as in raw photos.
    """
    full = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages
    largest = max(full, key=lambda page: page.imagelength * page.imagewidth)
    for page in pages:
        for inner in page.pages or () if page.subifds else ():
            assert isinstance(inner, TiffPage)
            if not inner.is_reduced and not inner.is_mask and not _is_level(inner, largest):
                raise ValueError(f"a TIFF with a full-size picture in a sub-directory; {_ADVICE}")
    return [page for page in full if not _is_level(page, largest)]


def _is_level(page: TiffPage, largest: TiffPage) -> bool:
    """Return whether a page is at most half as high and half as wide as the largest, rounded up."""
    return (
        page is not largest
        and page.imagelength <= -(-largest.imagelength // 2)
        and page.imagewidth <= -(-largest.imagewidth // 2)
    )


def _is_grey(page: TiffPage) -> bool:
    """Return whether a page has a single grey band."""
    return page.samplesperpixel == 1 and page.photometric in GREY


def _kind(page: TiffPage) -> tuple[object, ...]:
    """Return what is equal in all pages of one image."""
    return page.imagelength, page.imagewidth, page.samplesperpixel, page.dtype


def _check_ome(file: TiffFile, pages: int) -> None:
    """Raise ValueError unless the OME metadata say that the pages are the channels of one image."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
    sizes = dict(re.findall(r"\bSize([CZT])\s*=\s*[\"'](\d{1,9})[\"']", pixels[0] if pixels else ""))
    _refuse_stack({axis: int(size) for axis, size in sizes.items()})
    if int(sizes.get("C", pages)) != pages:
        raise ValueError(
            f"a TIFF of {pages} full-size planes whose OME metadata describe {sizes['C']} channels; {_ADVICE}"
        )


def _planes_behind(file: TiffFile, pages: list[TiffPage]) -> int:
    """Return the number of planes behind a single page, 1 for several pages.

    Raises ValueError if metadata call the planes depths or times, or describe more of them than there are.
    """
    first = pages[0]
    if not any(getattr(file, f"is_{kind}") for kind in STACKED):
        return 1
    series = next((s for s in file.series if s.keyframe.index == first.index), None)
    if series is None:
        return 1
    _refuse_stack(dict(zip(series.axes, series.shape, strict=True)))
    if len(pages) > 1:
        return 1
    planes = math.prod(series.shape) // math.prod(first.shape)
    described = (file.imagej_metadata or {}).get("images", 1)
    if planes == 1 and described > first.samplesperpixel:
        raise ValueError(f"a TIFF that holds one plane of the {described} that its ImageJ metadata describe")
    if planes > 1 and not (_is_grey(first) and first.is_contiguous):
        raise ValueError(f"a TIFF of {planes} pictures behind one page; {_ADVICE}")
    return max(planes, 1)


def _refuse_stack(sizes: dict[str, int]) -> None:
    """Raise ValueError if an axis other than height, width and channels is longer than 1."""
    stacked = {axis: size for axis, size in sizes.items() if axis not in f"YX{CHANNEL_AXES}" and size > 1}
    if stacked:
        each = " and ".join(f"{n} {_AXIS_NAMES.get(axis, f'of axis {axis}')}" for axis, n in stacked.items())
        raise ValueError(
            f"a TIFF stack of {each}, which are no channels; {_ADVICE}, or if they are channels call them so "
            "in its metadata (ImageJ: Image > Properties)"
        )
