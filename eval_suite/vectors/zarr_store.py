"""Write token maps to a Zarr store, with the keys, labels and other columns of their images.

The store is of version 3 of the format. The maps are sharded: a file holds maps of `_SHARD` bytes in chunks
of `_CHUNK` bytes, and a program that wants one map reads one chunk. The other columns are arrays of one
dimension. Zarr is an optional package, so this module imports it where it is used.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval_suite import progress
from eval_suite.vectors.about import KEY, About
from eval_suite.vectors.table import Tables, is_text, numbers, vectors_of
from isotorus import foreign_files
from isotorus.files import sync, temporary_folder

METADATA = "zarr.json"
"""The file in a store that describes it and, as a copy, all its arrays."""
TOKENS = "tokens"
_BYTES = "bytes"
"""The attribute of a store with the bytes of the files of all its arrays."""
DIMENSIONS = ("key", "token_row", "token_column", "token_width")
"""Names of the axes of the maps. The first one is also the array of keys, so xarray finds maps by key."""
_CHUNK, _SHARD = 2**22, 2**27
_COLUMN = 2**16
"""Rows of a chunk of the other columns."""
_LONGEST = 100
"""Largest length of the name of an array, which is that of a folder."""


def attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a store; {} for a folder that is no store. Raises OSError and UserError."""
    if path.is_dir() and not (path / METADATA).exists():
        return {}
    described = foreign_files.read_json(path / METADATA, path)
    found = described.get("attributes") if isinstance(described, dict) else None
    return found if isinstance(found, dict) else {}


def lacks_files(path: Path) -> bool:
    """Say whether files of the arrays are gone or cut off, for which programs read NaN, 0 or ""."""
    return _size(path) < int(attributes(path).get(_BYTES, 0))


def _size(path: Path) -> int:
    """Return the bytes of the files of all arrays of a store."""
    return sum(file.stat().st_size for file in path.glob("*/**/*") if file.is_file())


def write(path: Path, tables: Tables, about: About) -> None:
    """Write a store from its rows, whole or not at all; raises OSError where the disk refuses.

    A shard of maps is in memory at a time.
    """
    import zarr

    with temporary_folder(path.parent, f".{path.name}.") as folder:
        store = folder / "store"
        described = {KEY: about.model_dump(mode="json")}
        group = zarr.create_group(store, zarr_format=3, attributes=described)
        _write_columns(group, tables, about.rows)
        _write_tokens(group, tables, about)
        group.attrs[_BYTES] = _size(store)
        with warnings.catch_warnings():
            # Zarr warns that the copy is no part of the format yet; without it xarray warns of slow opening.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        for file in store.rglob("*"):
            sync(file)
        store.rename(path)
        sync(path.parent)


def _write_columns(group: Any, tables: Tables, rows: int) -> None:
    """Write all columns but the maps; a missing text is "", a missing number NaN."""
    missing: set[str] = set()
    for table in tables(features=False):
        missing |= {name for name in table.column_names if table[name].null_count}
    arrays: dict[str, Any] = {}
    start, taken = 0, {TOKENS}
    for block in _blocks(tables(features=False), _COLUMN):
        for name in block.column_names:
            column = block[name].combine_chunks()
            if is_text(column):
                values = np.array([text or "" for text in column.to_pylist()], object)
            else:
                values = numbers(column, missing=name in missing)
            if name not in arrays:
                arrays[name] = group.create_array(
                    _array_name(name, taken),
                    shape=(rows,),
                    chunks=(min(_COLUMN, rows),),
                    dtype=str if is_text(column) else values.dtype,
                    dimension_names=DIMENSIONS[:1],
                    attributes={"column": name},
                )
            arrays[name][start : start + len(block)] = values
        start += len(block)


def _write_tokens(group: Any, tables: Tables, about: About) -> None:
    """Write the maps, a shard at a time."""
    assert about.maps is not None
    one = (*about.maps.grid, about.width)
    size = np.dtype(about.maps.dtype).itemsize * int(np.prod(one))
    chunk = min(max(1, _CHUNK // size), about.rows)
    # The index of a shard has a place for every chunk, so it must not be larger than the array.
    shard = chunk * max(1, min(_SHARD // (size * chunk), -(-about.rows // chunk)))
    array = group.create_array(
        TOKENS,
        shape=(about.rows, *one),
        chunks=(chunk, *one),
        shards=(shard, *one),
        dtype=about.maps.dtype,
        compressors=None,  # which hardly makes numbers of an encoder smaller
        fill_value=np.nan,  # what a lost file reads as
        dimension_names=DIMENSIONS,
    )
    start = 0
    for block in _blocks(tables(), shard):
        array[start : start + len(block)] = vectors_of(block).reshape(-1, *one)
        start += len(block)
        progress.doing(f"{start:,} of {about.rows:,} maps are in the store")


def _blocks(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of tables again, this number at a time; the last block may have fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows)
            waiting = [whole.slice(rows)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _array_name(column: str, taken: set[str]) -> str:
    """Return the name of a column's array, which is added to those that are taken.

    The names of columns are free text, and that of an array is also the name of a folder. It differs from
    other names in more than upper and lower case, which some disks do not tell apart.
    """
    name = re.sub(r"[^\w .+-]", "_", column).strip(" .").encode()[:_LONGEST].decode(errors="ignore")
    if not name or name.startswith("__") or name.lower() in (METADATA, "c"):
        name = f"column{name}"
    while name.lower() in taken:
        name = f"{name}_"
    taken.add(name.lower())
    return name
