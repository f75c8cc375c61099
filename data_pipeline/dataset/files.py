"""files.npy: the file that each sample was read from, for sets with files that give several samples.

In other sets a sample is a file: its bytes, and the key of its path.
"""

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import Generation
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.table_files import open_table
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import join
from isotorus.files import atomic

FILES = "files.npy"
FILE = np.dtype([("key", "<u8"), ("size", "<u8"), ("checksum", "<u4")])
"""`key_hash` of the path without its ending, size in bytes and CRC-32 of a file."""
_PIECE = 2**20


def read(dataset: Dataset) -> NDArray[np.void]:
    """Return the file of each sample (n,) of dtype `FILE`, in the order of the index.

    Raises `UserError` if files.npy is missing or does not fit the data set.
    """
    if dataset.description.reading is None:
        return of_rows(dataset.rows)
    return open_files(dataset.path, dataset.description, CacheConfig())


def open_files(folder: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Return the rows of files.npy of a generation; raise `UserError` if it is missing or has fewer."""
    return open_table(join(folder, generation.table(FILES)), generation.count, cache, FILE)


def of_rows(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Return the files of samples that are files themselves, from their rows of the index."""
    table = np.empty(len(rows), FILE)
    for name in FILE.names or ():
        table[name] = rows[name]
    return table


def write(path: Path, table: NDArray[np.void]) -> None:
    """Write a table of dtype `FILE`."""
    with atomic(path) as file:
        np.save(file, table)


def checksum(file: BinaryIO, value: int = 0) -> int:
    """Return the CRC-32 of the rest of a file, read in pieces. `value` is the CRC-32 of the bytes before."""
    while piece := file.read(_PIECE):
        value = zlib.crc32(piece, value)
    return value
