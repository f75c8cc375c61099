"""Targets to predict from features: the packed class labels, or columns of a table with the samples' keys."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.listing import Item
from eval_suite.inputs.vectors import Vectors
from isotorus.errors import UserError, from_os_error
from isotorus.names import nearest

Kind = Literal["multiclass", "multilabel", "regression"]
_TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Targets:
    """The targets of all samples of a data set, in its order."""

    kind: Kind
    names: list[str]
    """Names of the classes, in the order of their index, or of the columns."""
    values: NDArray[Any]
    """Class indices (n,) int64, 0s and 1s (n, columns) int64, or numbers (n, columns) float64."""
    known: NDArray[np.bool_]
    """Which samples (n,) have targets; `values` of the others are meaningless."""
    without_row: int = 0
    """Number of samples that are not in the table."""
    without_value: int = 0
    """Number of samples in the table with an empty cell in a chosen column."""

    def class_indices(self) -> NDArray[np.int64]:
        """Return class indices (n,), −1 for samples without a class; other kinds of targets are all −1."""
        if self.kind != "multiclass":
            return np.full(len(self.known), -1)
        return np.where(self.known, self.values, -1)


def of_labels(dataset: Dataset) -> Targets:
    """Return the class labels that the data set was packed with."""
    known = dataset.labels >= 0
    return Targets(
        "multiclass",
        list(dataset.classes),
        dataset.labels.astype(np.int64),
        known,
        without_value=int((~known).sum()),
    )


def of_vectors(vectors: Vectors, split: str) -> Targets:
    """Return the labels of one split of a features file.

    Numbers are predicted by regression if one of them has a fraction; all other labels are classes.
    """
    rows = vectors.rows(split)
    if vectors.labels is None:
        return Targets("multiclass", [], np.zeros(rows.sum(), np.int64), np.zeros(rows.sum(), bool))
    labels = vectors.labels
    if np.issubdtype(labels.dtype, np.floating) and (labels != np.floor(labels)).any():
        return Targets(
            "regression", ["label"], labels[rows, None].astype(np.float64), np.isfinite(labels[rows])
        )
    texts = [_tidy(str(label)) if label is not None else "" for label in labels.tolist()]
    names = sorted(set(texts) - {"", "-1"})
    index = {name: i for i, name in enumerate(names)}
    values = np.array([index.get(text, -1) for text in texts], dtype=np.int64)[rows]
    return Targets("multiclass", names, values, values >= 0)


def fingerprint(targets: Targets) -> str:
    """Return a hash of kind, names and values, which changes when the targets change."""
    digest = hashlib.sha256(json.dumps([targets.kind, targets.names]).encode())
    for array in (targets.values, targets.known):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def load_targets(
    dataset: Dataset,
    file: str | Path,
    key_column: str,
    columns: Sequence[str],
    kind: Kind | None = None,
) -> Targets:
    """Read the chosen columns of a CSV (UTF-8) or Parquet file for each sample of the data set.

    `key_column` holds the samples' keys (`Dataset.key`), or the paths from which they were packed; rows of
    other samples are ignored. Without `kind`, one column of text, or of whole numbers that count up from 0 or
    1 without a gap, holds classes; several columns of 0, 1, true and false hold labels that may occur
    together; other numbers are predicted by regression. Class names are those of the whole file, so they are
    the same for every split. A sample with an empty cell or nan in a chosen column has no targets.

    Raises UserError if the file cannot be read, lacks a column, has two rows for a sample or none for this
    data set, or holds values that do not fit the kind.
    """
    file = Path(file)
    if not columns:
        raise UserError(f"{file}: no target columns are chosen; name one or more")
    if kind is not None and kind not in get_args(Kind):
        raise UserError(f"targets of kind {kind!r}; expected one of {', '.join(get_args(Kind))}")
    if kind == "multiclass" and len(columns) > 1:
        raise UserError(
            f"{file}: {len(columns)} columns {', '.join(columns)} as multiclass; choose the one that holds "
            "the class, or multilabel"
        )
    table = _read(file, [key_column, *columns])
    cells = {column: [_tidy(text) for text in table[column]] for column in columns}
    kind = kind or _kind(cells)
    names, values = _values(file, cells, kind)
    filled = np.array([all(row) for row in zip(*cells.values(), strict=True)], dtype=bool)

    row = _rows(dataset, file, key_column, [text or "" for text in table[key_column]])
    named = row >= 0
    known = named & filled[row]
    return Targets(kind, names, values[row], known, int((~named).sum()), int((named & ~known).sum()))


def aligned(targets: Mapping[str, Targets]) -> dict[str, Targets]:
    """Give the targets of all splits the same classes, those of the first split first.

    Raises ValueError if the splits' targets are of different kinds or columns.
    """
    first_split, first = next(iter(targets.items()))
    for split, other in targets.items():
        if other.kind != first.kind:
            raise ValueError(f"targets of {first_split} are {first.kind}, of {split} {other.kind}")
        if other.kind != "multiclass" and other.names != first.names:
            raise ValueError(f"targets of {first_split} and {split} have different columns")
    if first.kind != "multiclass":
        return dict(targets)
    names = list(dict.fromkeys(name for other in targets.values() for name in other.names))
    result = {}
    for split, other in targets.items():
        index = np.array([*map(names.index, other.names), -1], dtype=np.int64)
        result[split] = replace(other, names=names, values=index[np.where(other.known, other.values, -1)])
    return result


def _read(file: Path, wanted: Sequence[str]) -> dict[str, list[str | None]]:
    """Read the cells of the wanted columns as text; raises UserError if that is impossible."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    parquet = file.suffix.lower() == ".parquet"
    try:
        if parquet:
            names = pyarrow.parquet.read_schema(file).names
        else:
            with pyarrow.csv.open_csv(file) as head:
                names = head.schema.names
        _check_columns(file, names, wanted)
        if parquet:
            table = pyarrow.parquet.read_table(file, columns=list(dict.fromkeys(wanted)))
        else:
            as_text = pyarrow.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(wanted)),
                column_types={name: pyarrow.string() for name in wanted},
            )
            lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(file, parse_options=lines, convert_options=as_text)
        return {name: table[name].cast(pyarrow.string()).to_pylist() for name in wanted}
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise from_os_error(error, f"reading the targets {file}") from error
        reason, form = " ".join(str(error).split()), "Parquet file" if parquet else "CSV in UTF-8"
        raise UserError(f"{file} is not a {form} that can be read ({reason}); save it anew") from None


def _check_columns(file: Path, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise UserError for a wanted column that is missing or occurs twice."""
    for name in wanted:
        if name not in present:
            near = nearest(name, present)
            hint = f"did you mean {near!r}?" if near else f"its columns are {', '.join(present[:20])}"
            raise UserError(f"{file} has no column {name!r}; {hint}")
        if list(present).count(name) > 1:
            raise UserError(f"{file} has two columns {name!r}; rename or remove one of them")


def _tidy(text: str | None) -> str:
    """Strip blanks, turn nan into '', and remove the '.0' that whole numbers get in a column with gaps."""
    text = (text or "").strip()
    if text.lower() == "nan":
        return ""
    return text.partition(".")[0] if re.fullmatch(r"[+-]?[0-9]+\.0+", text) else text


def _kind(cells: Mapping[str, list[str]]) -> Kind:
    """Decide the kind of targets by the values."""
    values = {text for column in cells.values() for text in column} - {""}
    if len(cells) > 1:
        return "multilabel" if all(text.lower() in _TRUTH for text in values) else "regression"
    if not all(_number(text) is not None for text in values):
        return "multiclass"
    whole = {int(text) for text in values if re.fullmatch(r"[0-9]+", text)}
    counts_up = bool(whole) and min(whole) <= 1 and max(whole) - min(whole) == len(whole) - 1
    return "multiclass" if counts_up and len(whole) == len(values) else "regression"


def _values(file: Path, cells: Mapping[str, list[str]], kind: Kind) -> tuple[list[str], NDArray[Any]]:
    """Return the names of the classes or columns, and the values of every row of the table."""
    if kind == "multiclass":
        (column,) = cells.values()
        names = sorted(set(column) - {""})
        if all(re.fullmatch(r"[0-9]+", name) for name in names):
            names.sort(key=lambda name: (int(name), name))
        index = {name: i for i, name in enumerate(names)}
        return names, np.array([index.get(text, -1) for text in column], dtype=np.int64)
    values = np.zeros((len(next(iter(cells.values()))), len(cells)))
    for c, (name, column) in enumerate(cells.items()):
        for r, text in enumerate(column):
            value = _TRUTH.get(text.lower()) if kind == "multilabel" else _number(text)
            if text and value is None:
                expected = "0 or 1" if kind == "multilabel" else "a finite number"
                raise UserError(
                    f"{file}, row {r + 1} of the data: {text[:40]!r} in column {name!r}, expected {expected} "
                    f"for {kind} targets; mend it or choose another kind or column"
                )
            values[r, c] = value or 0
    return list(cells), values.astype(np.int64) if kind == "multilabel" else values


def _number(text: str) -> float | None:
    """Convert text to a finite number; None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _rows(dataset: Dataset, file: Path, key_column: str, keys: list[str]) -> NDArray[np.int64]:
    """Return the row of the table for each sample (n,), -1 where there is none.

    Keys are compared by their hashes, which are in the index, so that the shards need not be read.
    """
    samples = np.asarray(dataset.rows["key"])
    hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
    paths = np.array([key_hash(Item(key, 0).key) for key in keys], dtype=np.uint64)
    hashes = np.where(np.isin(hashes, samples), hashes, paths)
    rows = np.flatnonzero(np.isin(hashes, samples))
    if not len(rows):
        first = f" (the first: {keys[0][:80]!r})" if keys else ""
        raise UserError(
            f"{file}: none of the {len(keys)} keys in column {key_column!r}{first} is a sample of "
            f"{dataset.path} (its first: {dataset.key(0)!r}); choose the column and file of its keys"
        )
    order = rows[np.argsort(hashes[rows], kind="stable")]
    ordered = hashes[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        one, other = order[twice[0]] + 1, order[twice[0] + 1] + 1
        raise UserError(
            f"{file}: rows {one} and {other} of the data both name the sample {keys[other - 1]!r}; "
            "keep one row for each"
        )
    place = np.minimum(np.searchsorted(ordered, samples), len(ordered) - 1)
    return np.where(ordered[place] == samples, order[place], -1)
