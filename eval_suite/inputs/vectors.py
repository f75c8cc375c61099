"""A file of features that were made elsewhere, with their labels and splits if it has them."""

import hashlib
import io
import logging
import math
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipeline.dataset.index import key_hash
from data_pipeline.tables import cells, split_names
from data_pipeline.tables.table import cells_of
from data_pipeline.targets.target_values import Kind, encode
from data_pipeline.targets.targets import Targets, of_rows
from eval_suite.metrics import MAPS_SUFFIX
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error, one_line

SUFFIXES = (".npy", ".npz", ".parquet")
SPLITS = split_names.SIDES
LARGEST = 1e18
"""Largest absolute value of a feature; the squares of larger ones overflow in float32."""
_COLUMNS = {
    "labels": ("labels", "label"),
    "split": ("split", "splits"),
    "groups": ("groups", "group"),
    "keys": ("keys", "key"),
}
"""Names that a file may give to its columns other than features."""
_log = logging.getLogger(__name__)
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+|index|level_\d+")
"""Names that pandas gives to the index of a table, and to a former index that was saved and read again."""


@dataclass(frozen=True)
class Vectors:
    """The features in one file; without splits all rows are train."""

    file: Path
    x: NDArray[np.floating]
    """Features (n, d), all finite: float64 if the file holds numbers of eight bytes, else float32.

    Features far from the origin lose their differences in float32, so they stay as they are until centred.
    """
    labels: list[Any] | None
    """Label of each row, as the file has it; None if there are none."""
    split: NDArray[np.str_]
    """Split of each row (n,): train, val or test."""
    groups: NDArray[np.uint64] | None = None
    """Hash of the group of each row (n,), 0 for none; None if the file names no groups."""
    keys: list[str] | None = None
    """Key of the image of each row, or the path that it was packed from; None if the file names none."""

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
    """Say whether a name ends as that of a features file, or of a store of maps, which `read` refuses."""
    return Path(name).suffix in (*SUFFIXES, MAPS_SUFFIX)


def refuse_maps(file: Path) -> None:
    """Raise UserError for a name that ends as that of a store of token maps."""
    if file.suffix == MAPS_SUFFIX:
        raise UserError(
            f"{file} is for token maps, but this command reads one vector for each image; write such vectors "
            f"with: isotorus embed … --out {file.stem}.parquet"
        )


def read(given: str, *, not_distances: bool = False) -> Vectors:
    """Read a features file.

    `.npy` holds an array (n, d). `.npz` holds `features` (n, d). Parquet has a column `features` of lists or
    a number column for each dimension. Both may have `labels`, `split`, `groups` and `keys`, which may also
    be called `label`, `splits`, `group` and `key`. Splits are named train, val and test, or a synonym of
    these. Raises UserError for anything else, and unless `not_distances` for a matrix that looks like
    distances between the samples; pickles are not opened.
    """
    file = Path(given)
    refuse_maps(file)
    try:
        with foreign_files.open_binary(file, file.resolve().parent) as stream:
            return _checked(file, _columns(file, stream), not_distances)
    except UserError:
        raise
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    except Exception as error:  # numpy, zipfile and pyarrow raise nearly every kind for damaged files
        reason = one_line((str(error).splitlines() or [type(error).__name__])[0])[:200]
        message = f"{file} cannot be read as {file.suffix} ({reason}); save the features again"
        raise UserError(message) from None


def _checked(file: Path, columns: dict[str, Any], not_distances: bool) -> Vectors:
    """Return the columns of a file as features with what belongs to them; raises UserError for others."""
    x = np.asarray(columns.pop("features"))
    real = np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)
    if x.ndim != 2 or not real or min(x.shape) == 0:
        raise UserError(
            f"{file}: features of shape {x.shape} and type {x.dtype}; expected numbers (n, d), a row an image"
        )
    if broken := int((~np.isfinite(x).all(axis=1)).sum()):
        raise UserError(f"{file}: {broken} of {len(x)} rows have NaN or infinite values; remove them")
    kept = np.float64 if x.dtype.itemsize > 4 else np.float32
    if (largest := float(np.abs(x.astype(kept)).max())) > LARGEST:
        raise UserError(
            f"{file}: features as large as {largest:.1e}, but sums of squares need {LARGEST:.0e} or less; "
            "divide them by a constant"
        )
    for name, column in columns.items():
        shape = np.shape(column) if isinstance(column, np.ndarray) else (len(column),)
        if shape != (len(x),):
            raise UserError(f"{file}: {name} of shape {shape} beside features of {x.shape}; one a row")
    if not not_distances and _looks_like_distances(x):
        raise UserError(
            f"{file}: features of shape {x.shape} are symmetric with zeros on the diagonal, which looks like "
            "distances between the samples; give the features themselves, or say that these are features "
            "with --not-distances"
        )
    labels, groups = columns.get("labels"), columns.get("groups")
    return Vectors(
        file.resolve(),
        np.ascontiguousarray(x, dtype=kept),
        None if labels is None else list(labels),
        _splits(file, columns.get("split"), len(x)),
        None
        if groups is None
        else np.array([key_hash(g) if g else 0 for g in cells.groups(groups)], np.uint64),
        [cells.as_text(key) for key in columns["keys"]] if "keys" in columns else None,
    )


def _splits(file: Path, column: Any, rows: int) -> NDArray[np.str_]:
    """Return the split of each row; all are train without a column."""
    if column is None:
        return np.full(rows, "train")
    sides = [split_names.side(cell) for cell in column]
    if None in sides:
        i = sides.index(None)
        raise UserError(
            f"{file}: split {str(column[i])[:40]!r} of row {i + 1} is not one of {split_names.accepted()}; "
            "rename it"
        )
    return np.array(sides, dtype=str)


def _looks_like_distances(x: NDArray[Any]) -> bool:
    """Say whether a matrix could hold the distances between its rows' samples."""
    if x.shape[0] != x.shape[1] or len(x) < 3 or not x.any():
        return False
    scale = 1e-6 * float(np.abs(x).max())
    return bool((np.abs(x.diagonal()) <= scale).all() and (np.abs(x - x.T) <= scale).all())


def _named(file: Path, present: Sequence[str]) -> dict[str, str]:
    """Return what the file calls labels, split, groups and keys, where it has them, in any case."""
    names = {}
    for what, spellings in _COLUMNS.items():
        found = [name for name in present if name.strip().lower() in spellings]
        if len(found) > 1:
            raise UserError(f"{file} has both {found[0]} and {found[1]}; remove one of them")
        if found:
            names[what] = found[0]
    return names


def _columns(file: Path, stream: io.BufferedReader) -> dict[str, Any]:
    """Read `features` and, where they exist, `labels`, `split`, `groups` and `keys`."""
    if file.suffix == ".parquet":
        return _parquet(file, stream)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            _require_memory(file, sum(entry.file_size for entry in archive.infolist()))
    else:
        _require_whole_array(file, stream)
    stream.seek(0)
    loaded = np.load(stream, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"features": loaded}
    with loaded:
        if "features" not in loaded.files:
            raise UserError(f"{file} has arrays {', '.join(loaded.files)}, but none called features; add it")
        names = _named(file, loaded.files)
        columns = {what: loaded[name] for what, name in names.items()}
        columns = {what: list(c) if c.ndim == 1 else c for what, c in columns.items()}
        return {"features": loaded["features"], **columns}


def _require_whole_array(file: Path, stream: io.BufferedReader) -> None:
    """Raise UserError for a .npy file that does not hold as many numbers as its header says."""
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    needed, there = math.prod(shape) * kind.itemsize, os.fstat(stream.fileno()).st_size - stream.tell()
    if needed > there:
        raise UserError(f"{file} has {there:,} bytes of the {needed:.3g} that its header says; copy it again")


def _require_memory(file: Path, size: int) -> None:
    """Raise UserError for a file whose content, `size` bytes, is larger than the free memory."""
    free = psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"{file} holds {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free; save "
            "fewer rows"
        )


def _parquet(file: Path, stream: io.BufferedReader) -> dict[str, Any]:
    """Read a Parquet file; what pandas keeps as the index of a table is no feature."""
    described = pq.ParquetFile(stream).metadata
    # A value takes at least its eight bytes in numpy, however well the file packs it.
    groups = [described.row_group(i).total_byte_size for i in range(described.num_row_groups)]
    _require_memory(file, max(sum(groups), 8 * described.num_rows * described.num_columns))
    stream.seek(0)
    table = pq.read_table(stream)
    names = _named(file, table.column_names)
    columns: dict[str, Any] = {what: cells_of(table[name]) for what, name in names.items()}
    if "features" in table.column_names:
        # np.stack raises ValueError for lists of different lengths.
        return {**columns, "features": np.stack(table["features"].to_numpy(zero_copy_only=False))}
    index = {
        name for name in (table.schema.pandas_metadata or {}).get("index_columns", []) if str(name) == name
    }
    numbers = [
        field.name
        for field in table.schema
        if (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        and field.name not in {*names.values(), *index}
        and not (pa.types.is_integer(field.type) and _INDEX.fullmatch(field.name))
    ]
    if not numbers:
        raise UserError(f"{file} has neither a column features nor number columns; add one of them")
    _note_doubtful(file, table.schema, numbers)
    values = [table[name].to_numpy(zero_copy_only=False) for name in numbers]
    return {**columns, "features": np.stack(values, axis=1)}


def _note_doubtful(file: Path, schema: pa.Schema, features: Sequence[str]) -> None:
    """Name the whole-number columns that count as features beside others with fractions: perhaps they are
    numbers of patients or classes.
    """
    whole = [name for name in features if pa.types.is_integer(schema.field(name).type)]
    if whole and len(whole) < len(features):
        some = ", ".join(whole[:5]) + ", …" * (len(whole) > 5)
        _log.warning(
            "note: %s: %d of %d features are columns of whole numbers (%s); remove those that are none",
            *(file, len(whole), len(features), some),
        )


def of_vectors(
    vectors: Vectors, split: str, kind: Kind | None = None, missing: Sequence[str] | None = None
) -> Targets:
    """Return the labels of one split of a features file.

    Without `kind`, numbers are predicted by regression if one of them has a fraction, lists are labels that
    may occur together, and all other labels are classes.
    """
    rows = np.flatnonzero(vectors.rows(split))
    groups = None if vectors.groups is None else vectors.groups[rows]
    if vectors.labels is None:
        nothing = np.zeros(len(rows), np.int64)
        return Targets("multiclass", [], nothing, nothing > 0, groups=groups)
    places = [f"row {i}" for i in range(1, len(vectors.x) + 1)]
    column = {"label": vectors.labels}
    encoded = encode(str(vectors.file), column, places, kind, missing, whole_numbers_are_classes=True)
    return of_rows(encoded, rows, groups)
