"""Targets to predict from features: the packed class labels, or columns of a table with the samples' keys."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import files
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.packing.listing import Item
from data_pipeline.scientific_formats import formats
from data_pipeline.tables import cells, table
from data_pipeline.targets.target_values import Encoded, Kind, encode
from isotorus.errors import UserError


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
    groups: NDArray[np.uint64] | None = None
    """Group of each sample (n,) such as its patient, 0 for none; None if no groups are known."""

    def class_indices(self) -> NDArray[np.int64]:
        """Return class indices (n,), −1 for samples without a class; other kinds of targets are all −1."""
        if self.kind != "multiclass":
            return np.full(len(self.known), -1)
        return np.where(self.known, self.values, -1)


def of_labels(dataset: Dataset, kind: Kind | None = None) -> Targets:
    """Return the labels that the data set was packed with; classes, unless another kind is asked for.

    Names are spelled by the rule of `data_pipeline.tables.cells`, also those of sets that were packed before
    it. Raises UserError if the labels are not of the kind.
    """
    spelled = cells.values(dataset.classes, missing=())
    labelled = dataset.labels >= 0
    if kind in (None, "multiclass"):
        names = list(dict.fromkeys(spelled))
        index = np.array([*map(names.index, spelled), -1], dtype=np.int64)
        encoded = Encoded("multiclass", names, index[dataset.labels], labelled)
    else:
        column = [spelled[label] if label >= 0 else "" for label in dataset.labels.tolist()]
        places = [f"sample {i}" for i in range(len(column))]
        encoded = encode(dataset.path, {"label": column}, places, kind, missing=())
    return of_rows(encoded, np.arange(len(dataset)), dataset.groups)


def of_rows(encoded: Encoded, rows: NDArray[np.int64], groups: NDArray[np.uint64] | None) -> Targets:
    """Return the targets of samples, given the row of each in a table, -1 for none."""
    named = rows >= 0
    known = named & encoded.filled[rows] if len(encoded.filled) else np.zeros(len(rows), bool)
    counts = int((~named).sum()), int((named & ~known).sum())
    return Targets(encoded.kind, encoded.names, encoded.values[rows], known, *counts, groups=groups)


def fingerprint(targets: Targets) -> str:
    """Return a hash of kind, names, values and groups, which changes when one of them does."""
    digest = hashlib.sha256(json.dumps([targets.kind, targets.names]).encode())
    for array in (targets.values, targets.known):
        digest.update(np.ascontiguousarray(array).tobytes())
    if targets.groups is not None:
        digest.update(np.ascontiguousarray(targets.groups).tobytes())
    return digest.hexdigest()[:16]


def load_targets(
    dataset: Dataset,
    file: str | Path,
    key_column: str,
    columns: Sequence[str],
    kind: Kind | None = None,
    missing: Sequence[str] | None = None,
) -> Targets:
    """Read the chosen columns of a CSV or Parquet file for each sample of the data set.

    `key_column` holds the samples' keys (`Dataset.key`), or the paths from which they were packed; rows of
    other samples are ignored. Without `kind`, `target_values.encode` decides it. Class names are those of the
    whole file, so they are the same for every split. A sample without a value in a chosen column, which
    `missing` can define, has no targets.

    Raises UserError if the file cannot be read, lacks a column, has two rows for a sample that differ, none
    for this data set, or holds values that do not fit the kind.
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
    wanted = {key_column: "--key-column"} | dict.fromkeys(columns, "--target-columns")
    places, keys = [], []
    chosen: dict[str, list[Any]] = {name: [] for name in columns}
    for place, row in table.read(file, wanted, only=True):
        places.append(place)
        keys.append(cells.as_text(row[key_column]))
        for name, column in chosen.items():
            column.append(row[name])
    encoded = encode(str(file), chosen, places, kind, missing)
    rows = _rows(dataset, file, key_column, keys, places, encoded)
    return of_rows(encoded, rows, dataset.groups)


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


def missed_classes(targets: Mapping[str, Targets], reported: str) -> list[str]:
    """Return the classes of the reported split without a train sample; they are never predicted."""
    of = targets[reported]
    if of.kind != "multiclass" or targets["train"].kind != "multiclass":
        return []
    train, tested = ({t.names[i] for i in np.unique(t.values[t.known])} for t in (targets["train"], of))
    return [name for name in of.names if name in tested - train]


def _rows(
    dataset: Dataset,
    file: Path,
    key_column: str,
    keys: list[str],
    places: list[str],
    encoded: Encoded,
) -> NDArray[np.int64]:
    """Return the row of the table for each sample (n,), -1 where the table has no such row.

    Keys are compared by their hashes, which are in the index, so that the shards need not be read. A row of a
    file of several pictures is that of each picture, unless the picture has a row of its own.
    """
    samples, of_files = np.asarray(dataset.rows["key"]), files.read(dataset)["key"]
    hashes = key_hashes(keys, dataset)
    rows = np.flatnonzero(np.isin(hashes, np.concatenate([samples, of_files])))
    if not len(rows):
        first = f" (the first: {keys[0][:80]!r})" if keys else ""
        raise UserError(
            f"{file}: none of the {len(keys)} keys in column {key_column!r}{first} is a sample of "
            f"{dataset.path} (its first: {dataset.key(0)!r}); choose the column and file of its keys"
        )
    order = rows[np.argsort(hashes[rows], kind="stable")]
    ordered = hashes[order]
    for twice in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        one, other = order[twice], order[twice + 1]
        if encoded.filled[one] != encoded.filled[other] or not np.array_equal(
            encoded.values[one], encoded.values[other]
        ):
            raise UserError(
                f"{file}: {places[one]} and {places[other]} both name the sample {keys[other]!r}, with "
                "different values; keep the right one"
            )
    found = []
    for wanted in (samples, of_files):
        place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        found.append(np.where(ordered[place] == wanted, order[place], -1))
    return np.where(found[0] >= 0, found[0], found[1])


def key_hashes(keys: list[str], dataset: Dataset) -> NDArray[np.uint64]:
    """Return the hash of each key; of its spellings the first that is a sample of the data set or a file of
    several, else any.
    """
    samples = np.concatenate([dataset.rows["key"], files.read(dataset)["key"]])
    # Keys begin so in tars that were made with `tar -cf x.tar .`
    prefixes = ("", "./") if dataset.key(0).startswith("./") else ("",)
    hashes = np.zeros(len(keys), np.uint64)
    paths = [cells.one_path(key) for key in keys]
    for written in (keys, paths) if paths != keys else (keys,):
        for form in ("NFC", "NFD"):
            spelled = [key if key.isascii() else unicodedata.normalize(form, key) for key in written]
            # A DICOM file may have no ending, so that all of its name is the key: 1.2.840.10008.
            whole = [path.replace(".", "_") for path in spelled]
            for spelling in (spelled, [_key_of(path) for path in spelled], whole):
                for prefix in prefixes:
                    other = np.array([key_hash(prefix + key) for key in spelling], dtype=np.uint64)
                    hashes = np.where(np.isin(hashes, samples), hashes, other)
            if all(map(str.isascii, written)):
                break
    return hashes


def _key_of(path: str) -> str:
    """Return the key that `pack` gives to the file of a path."""
    return Item(path, 0, format=formats.by_name(path)).key
