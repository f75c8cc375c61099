"""Tell the format of a file by its ending and first bytes, and open it."""

import importlib
import importlib.util
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.scientific_formats.picture import Picture, Reading
from isotorus.errors import UserError
from isotorus.foreign_files import open_regular


class Format(NamedTuple):
    """A format of a field."""

    name: str
    endings: tuple[str, ...]
    start: tuple[int, bytes] | None
    """Offset and bytes that identify a file without any of the endings; None if nothing identifies it."""
    module: str
    """The module that reads it."""
    library: str
    """The Python package that this module needs."""
    extra: str
    """The extra of this package that installs the library; "" for a library that is always installed."""
    is_folder: bool = False
    """Whether an image of this format is a folder: it is recognised by its ending and read by its path."""


_FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")
STACK = "TIFF stack"
"""The format of TIFF files that hold several pictures; their endings are those of other TIFF files."""
_FORMATS = (
    Format("DICOM", (".dcm", ".dicom", ".ima"), (128, b"DICM"), "dicom", "pydicom", "medical"),
    Format("NIfTI", (".nii", ".nii.gz"), (344, b"n+1\0"), "nifti", "nibabel", "medical"),
    Format("whole slide", (".svs", ".ndpi", ".scn"), None, "slide", "tiffslide", "pathology"),
    Format("OME-Zarr", (".zarr", ".ome.zarr"), None, "ome_zarr", "zarr", "microscopy", is_folder=True),
    Format("FITS", _FITS, (0, b"SIMPLE  ="), "fits", "astropy", "astro"),
    Format(STACK, (), None, "tiff_stack", "tifffile", ""),
)
NOT_PICTURES = {"dicomdir"}
"""Names, in lower case, of files that only list other files."""
_LOOKED_AT = 352
"""Bytes that are read to recognise a file."""


def by_name(name: str) -> str:
    """Return the name of the format that a file's ending belongs to; "" for any other ending."""
    name = name.lower()
    return next((each.name for each in _FORMATS if name.endswith(each.endings)), "")


def of(file: Path) -> str:
    """Return the name of a file's format, by its ending or else by its first bytes; "" for any other, for
    hidden files and for those that cannot be read.
    """
    if file.name.startswith(".") or file.name.lower() in NOT_PICTURES:
        return ""
    if named := by_name(file.name):
        return named
    try:
        with file.open("rb") as stream:
            start = stream.read(_LOOKED_AT)
    except OSError:
        return ""
    known = (f.name for f in _FORMATS if f.start and start[f.start[0] :].startswith(f.start[1]))
    return next(known, "")


def stem(path: str, format_name: str) -> str:
    """Return a path without the ending of its format; a path with another ending stays whole."""
    endings = _format(format_name).endings
    ending = max((e for e in endings if path.lower().endswith(e)), key=len, default="")
    return path[: len(path) - len(ending)]


def endings() -> list[str]:
    """Return the endings of files of all these formats."""
    return [ending for each in _FORMATS for ending in each.endings]


def require(names: set[str]) -> None:
    """Raise `UserError` if the library of one of these formats is not installed."""
    for each in _FORMATS:
        if each.name in names and importlib.util.find_spec(each.library) is None:
            raise UserError(
                f"{each.name} files are read by {each.library}, which is not installed; "
                f'pip install "isotorus[{each.extra}]", or take these files away'
            )


def refuse_unknown(names: set[str], fields: Iterable[str]) -> None:
    """Raise `UserError` if a field of headers cannot exist in files of these formats.

    Only DICOM has a list of all fields, so nothing is refused if there are other formats.
    """
    if names == {"DICOM"}:
        for field in fields:
            if wrong := _module("DICOM").unknown(field):
                raise UserError(wrong)


def is_folder(name: str) -> bool:
    """Return whether a name is that of a folder which is an image."""
    return any(each.is_folder and name.lower().endswith(each.endings) for each in _FORMATS)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO | Path]:
    """Open a file for `read` and `field_of`; a folder is its path. Raises OSError as `open_regular` does."""
    if is_folder(path.name):
        yield path
        return
    with open_regular(path) as file:
        yield file


def read(format_name: str, file: BinaryIO | Path, reading: Reading) -> Generator[Picture]:
    """Yield the pictures of an open file, or of a folder.

    Raises ValueError, OSError or whatever else the library raises if the file is damaged or of another kind.
    """
    pictures: Generator[Picture] = _module(format_name).read(file, reading)
    return pictures


def field_of(format_name: str, file: BinaryIO | Path, name: str) -> str:
    """Return a field of the header of an open file as text; "" if it lacks the field or cannot be read."""
    module = _module(format_name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that are unusual or damaged
            value: Any = module.field(file, name)
    except MemoryError:
        raise
    except Exception:  # libraries raise nearly every kind of exception for damaged files
        return ""
    return "" if value is None else str(value)


def _module(format_name: str) -> ModuleType:
    return importlib.import_module(f"data_pipeline.scientific_formats.{_format(format_name).module}")


def _format(name: str) -> Format:
    return next(each for each in _FORMATS if each.name == name)
