"""A file of features that were made elsewhere, with their labels and splits if it has them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from isotorus.errors import UserError, from_os_error

SUFFIXES = (".npy", ".npz", ".parquet")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Vectors:
    """The features in one file; without splits all rows are train."""

    file: Path
    x: NDArray[np.float32]
    """Features (n, d), all finite."""
    labels: NDArray[Any] | None
    """Class names or numbers (n,), or None."""
    split: NDArray[np.str_]
    """Split of each row (n,): train, val or test."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file in hexadecimal."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def name(self) -> str:
        """The name of the file without its suffix."""
        return self.file.stem

    def rows(self, split: str) -> NDArray[np.bool_]:
        """Return which rows (n,) belong to a split."""
        return self.split == split


def is_vectors(name: str) -> bool:
    """Say whether a name is that of a features file, by its suffix."""
    return Path(name).suffix in SUFFIXES


def read(given: str) -> Vectors:
    """Read a features file.

    `.npy` holds an array (n, d). `.npz` holds `features` (n, d), and optionally `labels` (n,) and `split`
    (n,). Parquet has a column `features` of lists or a number column for each dimension, and optionally
    `label` and `split`. Splits are named train, val and test. Raises UserError for anything else; pickles are
    not opened.
    """
    file = Path(given)
    try:
        columns = _columns(file)
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except (ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{file} cannot be read as {file.suffix} ({reason}); save the features again"
        raise UserError(message) from None
    x = columns["features"]
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.number) or min(x.shape) == 0:
        raise UserError(
            f"{file}: features of shape {x.shape} and type {x.dtype}; expected numbers (n, d), a row an image"
        )
    if broken := int((~np.isfinite(x).all(axis=1)).sum()):
        raise UserError(f"{file}: {broken} of {len(x)} rows have NaN or infinite values; remove them")
    labels, split = columns.get("labels"), columns.get("split")
    for name, column in (("labels", labels), ("split", split)):
        if column is not None and column.shape != (len(x),):
            raise UserError(f"{file}: {name} of shape {column.shape} beside features of {x.shape}; one a row")
    split = np.full(len(x), "train") if split is None else split.astype(str)
    if unknown := sorted(set(split) - set(SPLITS)):
        raise UserError(f"{file}: split '{unknown[0]}' is not one of {', '.join(SPLITS)}; rename it")
    return Vectors(file.resolve(), np.ascontiguousarray(x, dtype=np.float32), labels, split)


def _columns(file: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays `features` and, where they exist, `labels` and `split`."""
    if file.suffix == ".parquet":
        return _parquet(file)
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"features": loaded}
    with loaded:
        if "features" not in loaded.files:
            raise UserError(f"{file} has arrays {', '.join(loaded.files)}, but none called features; add it")
        return {name: loaded[name] for name in ("features", "labels", "split") if name in loaded.files}


def _parquet(file: Path) -> dict[str, NDArray[Any]]:
    table = pq.read_table(file)
    names = {"labels": "label", "split": "split"}
    present = {k: c for k, c in names.items() if c in table.column_names}
    columns = {k: table[c].to_numpy(zero_copy_only=False) for k, c in present.items()}
    if "features" in table.column_names:
        # np.stack raises ValueError for lists of different lengths.
        return {**columns, "features": np.stack(table["features"].to_numpy(zero_copy_only=False))}
    numbers = [
        field.name
        for field in table.schema
        if (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        and field.name not in names.values()
    ]
    if not numbers:
        raise UserError(f"{file} has neither a column features nor number columns; add one of them")
    x = [table[name].to_numpy(zero_copy_only=False) for name in numbers]
    return {**columns, "features": np.stack(x, axis=1).astype(np.float32)}
