"""spacing.npy: the distance between the rows and between the columns of each image, where files state it.

`pack` takes it from the columns `spacing` and `spacing_unit` of a sample, which come from the header of the
file or from the table of images. Lengths are stored in millimetres, angles in arc seconds.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.description import Generation
from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.table_files import open_table
from data_pipeline.dataset.units import OTHER_NAMES, UNITS, Unit
from data_pipeline.storage.cache import CacheConfig
from data_pipeline.storage.reader import join
from isotorus.files import atomic

SPACING = "spacing.npy"
ROW = np.dtype([("rows", "<f4"), ("columns", "<f4"), ("kind", "u1")])
"""Distance between rows and between columns, and the kind of their unit (`units.LENGTH` or `units.ANGLE`); 0
where nothing is known."""
_UNKNOWN = (0.0, 0.0, 0)


def row(columns: Mapping[str, Any]) -> tuple[float, float, int]:
    """Return the row of dtype `ROW` of a sample from its columns; zeros if they state no spacing.

    `spacing` is a number for both directions, or two numbers for rows and columns, also as text.
    """
    unit = str(columns.get("spacing_unit") or "").strip()
    kind, size = UNITS.get(OTHER_NAMES.get(unit, unit), (0, 0.0))
    given: Any = columns.get("spacing")
    parts = re.split(r"[\s,;\[\]]+", given.strip("[] ")) if isinstance(given, str) else given
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, list) else [parts])]
    except (TypeError, ValueError):
        return _UNKNOWN
    if not kind or len(numbers) not in (1, 2) or not all(0 < each < math.inf for each in numbers):
        return _UNKNOWN
    return numbers[0] * size, numbers[-1] * size, kind


def known(table: NDArray[np.void]) -> int:
    """Return how many rows of a table know the spacing."""
    return int(np.count_nonzero(table["kind"]))


def in_unit(table: NDArray[np.void], unit: Unit) -> NDArray[np.float64]:
    """Return the spacing of rows and columns (n, 2) in a unit; NaN where it is not known, or of another
    kind.
    """
    kind, size = UNITS[unit]
    values = np.stack([table["rows"], table["columns"]], axis=-1).astype(np.float64) / size
    return np.where((table["kind"] == kind)[..., None], values, np.nan)


def read(dataset: Dataset) -> NDArray[np.void] | None:
    """Return the spacing of each sample (n,) of dtype `ROW`, mapped into memory; None if no file states it.

    Raises `UserError` if spacing.npy is missing or does not fit the data set.
    """
    if dataset.description.spacing is None:
        return None
    return open_spacing(dataset.path, dataset.description, dataset.cache)


def open_spacing(folder: str, generation: Generation, cache: CacheConfig) -> NDArray[np.void]:
    """Return the rows of spacing.npy of a generation; raise `UserError` if it is missing or has fewer."""
    return open_table(join(folder, generation.table(SPACING)), generation.count, cache, ROW)


def write(path: Path, table: NDArray[np.void]) -> None:
    """Write a table of dtype `ROW`."""
    with atomic(path) as file:
        np.save(file, table)
