"""The tables of a packed data set, mapped into memory: index.npy, shards.npy, groups.npy and others."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import DESCRIPTION, Generation
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import fetch, join
from isotorus.errors import UserError, from_os_error

INDEX = "index.npy"
SHARDS = "shards.npy"
GROUPS = "groups.npy"
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("checksum", "<u4"),
        ("key", "<u8"),
        ("kind", "u1"),
    ]
)
"""A row of the index: row of the shard table; offset and size in bytes of the image file in that shard;
class index or -1; width and height in pixels; CRC-32 of the image file; `key_hash` of the key; index
into the generation's list of file extensions."""
_ADVICE = "bring it back from a copy, or pack the images again"


def shard_row(name_bytes: int) -> np.dtype[np.void]:
    """Return the dtype of the shard table, with names of up to `name_bytes` bytes.

    `name` is relative to the data set, or an absolute path or URL; `first` is the index of the shard's first
    sample; `sha256` is in hexadecimal digits.
    """
    sizes = [("bytes", "<u8"), ("samples", "<u8"), ("first", "<u8")]
    return np.dtype([("name", f"S{name_bytes}"), *sizes, ("sha256", "S64")])


def open_rows(path: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Map the index (n,) of dtype `ROW` into memory; raise `UserError` if it does not fit dataset.json."""
    return open_table(join(path, generation.table(INDEX)), generation.count, cache, ROW)


def open_shards(path: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Map the table of shards into memory; raise `UserError` if it does not fit dataset.json."""
    shards = open_table(join(path, generation.table(SHARDS)), generation.shards, cache)
    if shards.dtype.names is None or shards.dtype != shard_row(shards.dtype[0].itemsize):
        raise does_not_fit(join(path, generation.table(SHARDS)))
    return shards


def open_groups(path: str, generation: Generation, cache: CacheConfig) -> NDArray[np.uint64] | None:
    """Map the groups (n,) into memory, None if none are known; raise `UserError` if they do not fit
    dataset.json.
    """
    if generation.groups is None:
        return None
    groups: NDArray[Any] = open_table(
        join(path, generation.table(GROUPS)), generation.count, cache, np.dtype("<u8")
    )
    return groups


def families(generations: Iterable[Generation]) -> list[list[Generation]]:
    """Return the generations that share their tables in one list each, the oldest first."""
    return [list(family) for _, family in groupby(generations, key=lambda generation: generation.tables)]


def shard_names(path: str, generations: Iterable[Generation], cache: CacheConfig) -> list[bytes]:
    """Return the names of all shards that a generation uses, each once."""
    tables = [open_shards(path, family[-1], cache)["name"].tolist() for family in families(generations)]
    return list(dict.fromkeys(name for names in tables for name in names))


def open_table(
    file: str, count: int, cache: CacheConfig, dtype: np.dtype[Any] | None = None
) -> NDArray[np.void]:
    """Map the first `count` rows of a .npy file into memory; raise `UserError` if it is damaged, too
    short, or of another dtype than the one given.
    """
    try:
        table: NDArray[np.void] = np.lib.format.open_memmap(fetch(file, cache), mode="r")  # never unpickles
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # numpy raises many kinds of exception for a bad header
        raise UserError(f"{file} is damaged ({error}); {_ADVICE}") from None
    # The file is longer if there are newer generations.
    if table.ndim != 1 or len(table) < count or (dtype is not None and table.dtype != dtype):
        raise does_not_fit(file)
    return table[:count]


def does_not_fit(file: str) -> UserError:
    """Return the error for a table that does not fit dataset.json."""
    return UserError(f"{file} does not fit the {DESCRIPTION} beside it; {_ADVICE}")
