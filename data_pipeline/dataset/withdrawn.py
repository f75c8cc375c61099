"""withdrawn.npy: the images that were removed from a data set; only if there are any.

It holds hashes and no names. They keep the images out when the set is added to, and say where the images
stood in the sample order of runs that trained before.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError
from isotorus.files import atomic

WITHDRAWN = "withdrawn.npy"
PLACE = np.dtype(
    [("key", "<u8"), ("file", "<u8"), ("group", "<u8"), ("generation", "<u8"), ("position", "<u8")]
)
"""A row for each removed sample and generation that held it: `key_hash` of its key, of the key of its file
and of its group (0: none); the generation's fingerprint as a number; the sample's index in that generation.
In a row for a whole group of which no further image may come, key, file and generation are 0."""


def read(folder: str | Path) -> NDArray[np.void]:
    """Return the rows (n,) of dtype `PLACE` of a local data set; none if nothing was removed.

    Raises `UserError` if the file is damaged: without it, images that were withdrawn could come back.
    """
    path = Path(folder) / WITHDRAWN
    try:
        table: NDArray[np.void] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return np.empty(0, PLACE)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); bring it back from a copy") from None
    if table.dtype != PLACE or table.ndim != 1:
        raise UserError(f"{path} is no table of removed images; bring it back from a copy")
    return table


def of(dataset: Dataset) -> NDArray[np.void]:
    """Return the rows of a local data set, opened at its newest generation, as `read` does, but without the
    samples and groups that this generation holds.

    Those were noted by a `remove` that was killed before it had published anything.
    """
    table = read(dataset.path)
    held = np.isin(table["key"], dataset.rows["key"]) if len(table) else np.zeros(0, np.bool_)
    if dataset.groups is not None:
        held |= (table["key"] == 0) & np.isin(table["group"], dataset.groups)
    return table[~held]


def add(dataset: Dataset, rows: NDArray[np.void]) -> None:
    """Add rows to those of a data set, each once."""
    known = of(dataset)
    with atomic(Path(dataset.path) / WITHDRAWN) as file:
        np.save(file, np.unique(np.concatenate([known, rows])))


def hashes(table: NDArray[np.void], *columns: str) -> NDArray[np.uint64]:
    """Return the hashes in these columns, each once and without 0."""
    found: NDArray[Any] = np.unique(np.concatenate([table[name] for name in columns]))
    return found[found != 0]


def left_of(table: NDArray[np.void], fingerprint: str, count: int) -> NDArray[np.int64]:
    """Return the indices (m,) in a former generation of `count` samples of those that were not removed since.

    They are the first m samples of the newest generation, as removing images keeps the order of the others
    and new images come last.
    """
    removed = table["position"][table["generation"] == number(fingerprint)]
    return np.delete(np.arange(count), removed.astype(np.int64))


def number(fingerprint: str) -> int:
    """Return a fingerprint, 16 hexadecimal digits, as the table stores it."""
    return int(fingerprint, 16)
