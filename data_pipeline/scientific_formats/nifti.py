"""Read NIfTI volumes with nibabel: each slice across a chosen axis is a picture.

A volume is turned to the orientation RAS+ (left to right, back to front, foot to head), whatever the scanner
stored, and slices are numbered in that direction. A slice has the front (or head) at its top and the
patient's left at its left; a sagittal one has the back at its left. Values are the stored numbers after
scl_slope and scl_inter.
"""

import gzip
import io
import logging
from collections.abc import Generator
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.fileslice import fileslice
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from data_pipeline.decoders.pixels import check_size
from data_pipeline.scientific_formats.picture import Picture, Reading, filled, numbered, plain
from data_pipeline.scientific_formats.values import scaled, storable

_AXES = {"sagittal": ("x", 0), "coronal": ("y", 1), "axial": ("z", 2)}
"""For each direction: the letter in the names of slices, and the axis of RAS+ that is constant in a slice."""
_MM = {"meter": 1e3, "micron": 1e-3}
_IN_ORDER = 2
"""Stored axis whose slices lie one behind the other in the file."""

logging.getLogger("nibabel").setLevel(logging.CRITICAL)  # it logs every repair of a damaged header


def read(file: BinaryIO, reading: Reading) -> Generator[Picture]:
    """Yield the slices of a volume, of each time in turn; a flat image gives a picture without a name.

    Slices are read one by one; only a compressed volume that is cut across the order of its file is held in
    memory. Raises ValueError for images of other than 2 to 4 dimensions, and whatever nibabel raises for a
    damaged file.
    """
    image, stream, compressed = _opened(file)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"a NIfTI image of {len(shape)} dimensions; expected 2 to 4")
    height, width = sorted(shape[:3])[-2:]
    check_size(height, width, 1)
    if len(shape) == 2:
        flat = _stored(stream, image, shape, ())
        yield Picture("", _values(image, flat.T[::-1]), _kept(image, reading.keep))
        return
    yield from _slices(stream, compressed, image, shape, reading)


def field(file: BinaryIO, name: str) -> Any:
    """Return a field of the header by its name; None if the header lacks it."""
    return _kept(_opened(file)[0], (name,)).get(name)


def _opened(file: BinaryIO) -> tuple[Any, io.BufferedIOBase, bool]:
    """Return the image whose header is read, the stream of its data, and whether that is compressed."""
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = cast(io.BufferedIOBase, gzip.GzipFile(fileobj=file) if compressed else file)
    first = stream.read(4)
    stream.seek(0)
    second_version = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
    image = (nibabel.Nifti2Image if second_version else nibabel.Nifti1Image).from_stream(stream)
    return image, stream, compressed


def _slices(
    stream: io.BufferedIOBase, compressed: bool, image: Any, shape: tuple[int, ...], reading: Reading
) -> Generator[Picture]:
    """Yield the slices of a volume (X, Y, Z) or of several (X, Y, Z, T)."""
    letter, across = _AXES[reading.axis]
    # Row i: the axis of RAS+ that the stored axis i is, and -1 if it runs the other way.
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("RAS"))
    if np.isnan(turn).any():
        raise ValueError("a NIfTI image whose affine matrix gives an axis no direction")
    axis = int(np.flatnonzero(turn[:, 0] == across)[0])
    count, times = shape[axis], shape[3] if len(shape) == 4 else 1
    whole = _stored(stream, image, shape, ()) if compressed and axis != _IN_ORDER else None
    fields = _geometry(image, turn, axis) | _kept(image, reading.keep)
    for time in range(times):
        prefix = f"{numbered('t', time, times)}_" if times > 1 else ""
        for stored_number in range(count):
            number = stored_number if turn[axis, 1] > 0 else count - 1 - stored_number
            if number % reading.every:
                continue
            place: list[int | slice] = [slice(None)] * 3 + [time] * (len(shape) - 3)
            place[axis] = stored_number
            at = tuple(place)
            stored = _stored(stream, image, shape, at) if whole is None else whole[at]
            values = _values(image, _upright(stored, np.delete(turn, axis, axis=0)))
            yield Picture(f"{prefix}{numbered(letter, number, count)}", values, fields)


def _stored(
    stream: io.BufferedIOBase, image: Any, shape: tuple[int, ...], place: tuple[int | slice, ...]
) -> NDArray[Any]:
    """Read the stored numbers at a place of an image of this shape; () reads all."""
    proxy = image.dataobj
    stored: NDArray[Any] = fileslice(stream, place, shape, proxy.dtype, proxy.offset, order="F")
    return stored


def _upright(stored: NDArray[Any], turn: NDArray[np.float64]) -> NDArray[Any]:
    """Return a slice with rows and columns as the module says; row i of `turn` is about its axis i."""
    for axis, (_, direction) in enumerate(turn):
        stored = np.flip(stored, axis) if direction < 0 else stored
    across_then_up = stored if turn[0, 0] < turn[1, 0] else stored.T
    return across_then_up.T[::-1]


def _values(image: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Return the values of a slice (H, W), or (H, W, 3) if its pixels are colours."""
    if stored.dtype.names:
        return storable(np.stack([stored[name] for name in ("R", "G", "B")], axis=2))
    return scaled(stored, float(image.dataobj.slope), float(image.dataobj.inter))


def _geometry(image: Any, turn: NDArray[np.float64], axis: int) -> dict[str, Any]:
    """Return the distance between rows and between columns, and between slices, in mm."""
    unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    sizes = {int(turn[i, 0]): round(float(image.header.get_zooms()[i]) * unit, 6) for i in range(3)}
    thickness = sizes.pop(int(turn[axis, 0]))
    spacing = [sizes[i] for i in sorted(sizes, reverse=True)]
    return {"spacing": spacing, "spacing_unit": "mm", "thickness": thickness}


def _kept(image: Any, keep: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of the header to keep, such as descrip, that are there and not empty."""
    return filled({name: plain(image.header[name]) for name in keep if name in image.header})
