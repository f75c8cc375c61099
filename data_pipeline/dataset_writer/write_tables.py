"""Write the tables of a data set, and at last dataset.json, which makes them a generation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import files, modified, spacing
from data_pipeline.dataset.description import (
    DESCRIPTION,
    Description,
    IndexCounts,
    table_name,
)
from data_pipeline.dataset.files import FILES
from data_pipeline.dataset.modified import MODIFIED
from data_pipeline.dataset.spacing import SPACING
from data_pipeline.dataset.table_files import GROUPS, INDEX, ROW, SHARDS
from isotorus.files import atomic, sync

ROWS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Tables:
    """The tables of a whole data set beside its index; None for a table that it does not have."""

    shards: NDArray[np.void]
    groups: NDArray[np.uint64] | None
    times: NDArray[np.int64] | None
    files: NDArray[np.void] | None
    spacing: NDArray[np.void] | None


def write_tables(
    folder: Path, number: int, rows: Iterable[NDArray[np.void]], tables: Tables, counts: IndexCounts
) -> None:
    """Write the tables with the number of `Generation.tables`, and count the rows of the index in `counts`.

    `rows` are those of the index, in pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = int(tables.shards["samples"].sum())
    with atomic(folder / table_name(INDEX, number)) as file:
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False}
        np.lib.format.write_array_header_2_0(file, header | {"shape": (count,)})
        for some in rows:
            counts.add(some)
            file.write(some.tobytes())
    with atomic(folder / table_name(SHARDS, number)) as file:
        np.save(file, tables.shards)
    if tables.groups is not None:
        with atomic(folder / table_name(GROUPS, number)) as file:
            np.save(file, tables.groups)
    if tables.times is not None:
        modified.write(folder / table_name(MODIFIED, number), tables.times)
    if tables.files is not None:
        files.write(folder / table_name(FILES, number), tables.files)
    if tables.spacing is not None:
        spacing.write(folder / table_name(SPACING, number), tables.spacing)
    sync(folder)


def write_description(folder: Path, description: Description) -> None:
    """Write dataset.json: from then on readers see the tables that it names."""
    with atomic(folder / DESCRIPTION) as file:
        file.write(description.model_dump_json(indent=1).encode())
    sync(folder)
