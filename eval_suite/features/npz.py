"""Read and write the arrays of .npz files row by row, so that an array may be larger than the memory."""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isotorus import foreign_files

_LARGEST_PIECE = 2**30  # bytes


class NotRows(ValueError):
    """A file that lacks the array, or an array that cannot be read row by row."""


class Rows:
    """An array of numbers in an .npz file.

    Raises NotRows if there is no such array, UserError if the file is a link out of its folder, and OSError.
    """

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, f"{name}.npy"
        with _member(self._file, self._name) as stream:
            self.shape, self.dtype = self._header(stream)

    def pieces(self, count: int) -> Iterator[NDArray[Any]]:
        """Yield at most `count` rows at a time; raises NotRows if the file ends before its last row."""
        with _member(self._file, self._name) as stream:
            self._header(stream)
            for start in range(0, self.shape[0], count):
                shape = (min(count, self.shape[0] - start), *self.shape[1:])
                size = int(np.prod(shape)) * self.dtype.itemsize
                if size > _LARGEST_PIECE:
                    raise NotRows(f"{self._file} has rows of {size // shape[0]:,} bytes")
                data = stream.read(size)
                if len(data) != size:
                    raise NotRows(f"{self._file} ends before its last row; copy it again")
                yield np.frombuffer(data, self.dtype).reshape(shape)

    def _header(self, stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Read the header of the array, up to its first row."""
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except ValueError as error:
            raise NotRows(f"{self._file}: {self._name} is no array ({error})") from None
        if dtype.hasobject or not shape or (fortran and len(shape) > 1):
            raise NotRows(f"{self._file}: {self._name} has no rows of numbers")
        return shape, dtype


@contextmanager
def _member(file: Path, name: str) -> Iterator[Any]:
    """Open one file in a zip for reading."""
    with foreign_files.open_binary(file) as stream:
        try:
            archive = zipfile.ZipFile(stream)
            member = archive.open(name)
        except (KeyError, zipfile.BadZipFile) as error:
            raise NotRows(f"{file} has no array {name} ({error})") from None
        with archive, member:
            yield member


def write(
    archive: zipfile.ZipFile,
    name: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    pieces: Iterable[NDArray[Any]],
) -> None:
    """Write an array of this shape into an .npz file that is open for writing, from pieces of its rows.

    Equal arrays give equal bytes at any time.
    """
    entry = zipfile.ZipInfo(f"{name}.npy")  # with the date 1980
    with archive.open(entry, "w", force_zip64=True) as member:
        described = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": tuple(shape),
        }
        np.lib.format.write_array_header_2_0(member, described)
        for piece in pieces:
            member.write(np.ascontiguousarray(piece, dtype).tobytes())
