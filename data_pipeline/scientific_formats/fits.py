"""Read FITS images with astropy: an image, or each plane of a cube.

The pictures come from one part (HDU) of the file: the one that is asked for, else the first with an image.
Rows are in the order of the file, as astropy gives them: programs that show FITS images put the first at the
bottom. Values are those after BSCALE and BZERO; pixels of whole numbers that equal BLANK are NaN.
"""

import math
import warnings
from collections.abc import Generator
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from data_pipeline.decoders.pixels import check_size
from data_pipeline.scientific_formats.picture import Picture, Reading, filled, numbered, plain
from data_pipeline.scientific_formats.values import storable

_DEFAULT = {"telescope": "TELESCOP", "device": "INSTRUME", "filter": "FILTER", "exposure": "EXPTIME"}
"""Fields that every sample gets, by the name in its JSON."""


def read(file: BinaryIO, reading: Reading) -> Generator[Picture]:
    """Yield the planes of an image; a flat image gives a picture without a name.

    Axes of length 1 do not count, and of more than three, the outer ones count the planes together. Raises
    ValueError if the file has no such part or no image, and whatever astropy raises for a damaged file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*truncated.*")
        with fits.open(file, memmap=False, lazy_load_hdus=True) as parts:
            part = _part(parts, reading.hdu)
            shape = part.shape
            check_size(shape[-2], shape[-1], 1)
            count = math.prod(shape[:-2])
            fields = _fields(part.header, reading.keep)
            for number in range(0, count, reading.every):
                place = np.unravel_index(number, shape[:-2]) if shape[:-2] else ()
                plane = np.asarray(part.section[(*map(int, place), slice(None), slice(None))])
                name = numbered("z", number, count) if count > 1 else ""
                yield Picture(name, storable(plane), fields)


def field(file: BinaryIO, name: str) -> Any:
    """Return the value of a keyword in the first part of the file that has it; None if none has."""
    with fits.open(file, memmap=False, lazy_load_hdus=True) as parts:
        return next((plain(part.header[name]) for part in parts if name in part.header), None)


def _part(parts: Any, asked: str | None) -> Any:
    """Return the part that is asked for by number or name, else the first with an image.

    Raises ValueError if there is none, or if it holds no image.
    """
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    if asked is None:
        for part in parts:
            if isinstance(part, kinds) and len(part.shape) >= 2:
                return part
        raise ValueError("a FITS file without an image")
    try:
        part = parts[int(asked) if asked.isdecimal() else asked]
    except (IndexError, KeyError):
        names = ", ".join(f"{i} {part.name}".strip() for i, part in enumerate(parts))
        raise ValueError(f"a FITS file without the HDU {asked}; it has {names}") from None
    if not isinstance(part, kinds) or len(part.shape) < 2:
        raise ValueError(f"a FITS file whose HDU {asked} is no image")
    return part


def _fields(header: Any, keep: tuple[str, ...]) -> dict[str, Any]:
    """Return what the header says about the image, and the keywords to keep."""
    fields = {name: plain(header.get(keyword)) for name, keyword in _DEFAULT.items()}
    fields |= _spacing(header)
    fields |= {name: plain(header[name]) for name in keep if name in header}
    return filled(fields)


def _spacing(header: Any) -> dict[str, Any]:
    """Return the angle between rows and between columns in arc seconds, if the axes are angles in degrees."""
    if header.get("CUNIT1", "deg").strip() != "deg" or "CRVAL1" not in header:
        return {}
    sides = []
    for axis in (2, 1):
        column = [header.get(f"CD{row}_{axis}", 0.0) for row in (1, 2)]
        sides.append(math.hypot(*column) or abs(header.get(f"CDELT{axis}", 0.0)))
    return (
        {"spacing": [round(side * 3600, 6) for side in sides], "spacing_unit": "arcsec"} if all(sides) else {}
    )
