"""Size, time and checksum of what an image was read from: a file, or a folder of files such as OME-Zarr."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.dataset.files import checksum
from isotorus.foreign_files import open_regular


def size_and_time(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files in a folder, and the time of the last modification, in nanoseconds."""
    statuses = [path.stat() for path in _files(folder)]
    return sum(s.st_size for s in statuses), max((s.st_mtime_ns for s in statuses), default=0)


def size_and_checksum(path: Path) -> tuple[int, int]:
    """Return size and CRC-32 of a file, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        with open_regular(path) as file:
            value = checksum(file)
            return file.tell(), value
    size, value = 0, 0
    for inner in _files(path):
        value = zlib.crc32(os.fsencode(inner.relative_to(path)), value)
        with open_regular(inner) as file:
            value = checksum(file, value)
            size += file.tell()
    return size, value


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders, in the order of their names; links to folders are not
    followed.
    """
    for where, subfolders, names in os.walk(folder):
        subfolders.sort()
        yield from (Path(where) / name for name in sorted(names))
