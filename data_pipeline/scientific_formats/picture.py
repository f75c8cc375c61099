"""A picture of a file, and the options for reading such files."""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from isotorus.section import Section

PICTURE_NAME = re.compile(r"(?:[a-z]\d+_?)+")
"""Pattern of the names of pictures."""


class Picture(NamedTuple):
    """One picture of a file."""

    name: str
    """Says which picture of the file it is, such as "z012"; "" if the file is a single picture."""
    values: NDArray[Any]
    """Numbers (H, W) or (H, W, C), in the units of the file, of one of the types that `values.storable`
    returns."""
    header: Mapping[str, Any]
    """What the file says about the picture, by name of the field, for the JSON beside it."""
    nodata: float | None = None
    """Value of pixels that were not measured, if the file names one."""


class Reading(Section):
    """How files of the field are read; the same for all files of a packing."""

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Which slices of a NIfTI volume are the pictures."""
    every: PositiveInt = 1
    """Take every n-th picture of a file, from the first."""
    hdu: str | None = None
    """Number or name of the part of a FITS file that holds the pictures; None: the first that holds any."""
    tile: PositiveInt = 256
    """Side in pixels of the tiles of a whole slide."""
    mpp: PositiveFloat = 0.5
    """Micrometres a pixel of these tiles: 0.5 is about 20×, 0.25 about 40×."""
    tissue: float = Field(0.25, ge=0, le=1)
    """Least share of a tile that is tissue."""
    keep: tuple[str, ...] = ()
    """Fields of the files' headers to keep beside the pictures, by the name that the format gives them."""


def numbered(letter: str, number: int, count: int) -> str:
    """Return the name of one of `count` pictures, such as "z012": names of one file sort by number."""
    return f"{letter}{number:0{max(len(str(count - 1)), 3)}d}"


def plain(value: Any) -> Any:
    """Return a value of a header as JSON has it: numbers, text, or lists of them; None if it is empty."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.rstrip(b"\0").decode(errors="replace")
    if isinstance(value, list | tuple):
        return [plain(each) for each in value] or None
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return str(value).strip() or None


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a header that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
