"""The table of a file of vectors: which columns it has, and its rows as Arrow tables, part by part.

key, image   the key of the sample, and the name of its image file in the shard
label, group the names of its class and group; the group's hash if no column of the JSON holds the name
…            the columns of the samples' JSON; one whose name means something else here begins with json_
sample       the number of the sample in the data set
features     the vector
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.tables import cells
from eval_suite.vectors.parts import Part, Parts, text
from isotorus.errors import UserError

NEIGHBOURS = ("neighbour_keys", "neighbour_similarities")
ANOMALY = ("anomaly", "anomaly_percentile")
"""Columns that are computed from the vectors of all rows."""
RESERVED = {
    *("key", "keys", "image", "label", "labels", "group", "groups", "split", "splits", "sample", "features"),
    "tokens",
    *NEIGHBOURS,
    *ANOMALY,
}
"""Names in lower case that have a meaning in files of vectors or of features."""
MOST_COLUMNS = 200
"""Largest number of columns from the samples' JSON; more become one column of JSON text."""


class Tables(Protocol):
    """A function that yields the rows of a file, table after table; it may be called several times."""

    def __call__(self, *, features: bool = True) -> Iterator[pa.Table]:
        """Yield the rows, without the column `features` unless it is wanted, because it is most of them."""


@dataclass(frozen=True)
class Layout:
    """The columns of a file of vectors."""

    columns: Mapping[str, tuple[str, pa.DataType]]
    """For each column of the samples' JSON its name in the file and its type; empty if they are too many."""
    joined: bool
    """Whether the columns of the JSON are one column of text."""
    labelled: bool
    group_from: str | None
    """The column of the JSON that names the groups; None if they have no names."""
    rows: int
    left_out: dict[int, str]
    """Why samples have no row."""


def of_parts(parts: Parts, dataset: Dataset) -> tuple[Layout, Tables]:
    """Return the layout of the file that the parts make, and its rows.

    Raises UserError if no sample has a vector.
    """
    layout = _layout(parts, dataset)
    if not layout.rows:
        sample, why = next(iter(layout.left_out.items()))
        raise UserError(
            f"none of the {len(layout.left_out):,} images of {dataset.path} has a vector (sample {sample}: "
            f"{why}); name a checkpoint from before its training diverged, or run: isotorus verify "
            f"{dataset.path}"
        )

    def tables(*, features: bool = True) -> Iterator[pa.Table]:
        for number in range(len(parts)):
            part = parts.read(number, vectors=features)
            if len(part.samples):
                table = _columns(part, layout, dataset)
                yield table.append_column("features", _lists(part.vectors)) if features else table

    return layout, tables


def _layout(parts: Parts, dataset: Dataset) -> Layout:
    """Read the sidecars of all parts, and decide the columns by their values."""
    kinds: dict[str, set[str]] = {}
    naming: set[str] | None = None
    rows, labelled = 0, False
    left_out: dict[int, str] = {}
    groups = dataset.groups
    for number in range(len(parts)):
        part = parts.read(number, vectors=False)
        rows += len(part.samples)
        left_out |= part.left_out
        labelled = labelled or bool((dataset.labels[part.samples] >= 0).any())
        for sample, sidecar in zip(part.samples.tolist(), part.sidecars, strict=True):
            for name, value in sidecar.columns.items():
                kinds.setdefault(name, set()).add(_kind(value))
            if groups is not None and groups[sample]:
                candidates = sidecar.columns if naming is None else naming & sidecar.columns.keys()
                naming = {
                    name for name in candidates if key_hash(_group(sidecar.columns[name])) == groups[sample]
                }
    joined = len(kinds) > MOST_COLUMNS
    return Layout(
        {} if joined else _named(kinds),
        joined,
        labelled,
        min(naming) if naming else None,
        rows,
        left_out,
    )


def _named(kinds: Mapping[str, set[str]]) -> dict[str, tuple[str, pa.DataType]]:
    """Return the name in the file and the type of each column, given the kinds of its values."""
    taken = set(RESERVED)
    columns = {}
    for name, found in kinds.items():
        shown = text(name)
        while shown.strip().lower() in taken:
            shown = f"json_{shown}"
        taken.add(shown.strip().lower())
        present = found - {"none"}
        if present == {"bool"}:
            kind = pa.bool_()
        elif present == {"int"}:
            kind = pa.int64()
        elif present and present <= {"int", "float"}:
            kind = pa.float64()
        else:
            kind = pa.string()
        columns[name] = (shown, kind)
    return columns


def _kind(value: Any) -> str:
    """Return the kind of a value of JSON; whole numbers beyond 64 bits count as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def _group(value: Any) -> str:
    """Return the spelling by which a data set hashes the name of a group."""
    return cells.groups([value])[0]


def _columns(part: Part, layout: Layout, dataset: Dataset) -> pa.Table:
    """Return the rows of a part without their vectors."""
    found: dict[str, pa.Array] = {
        "key": pa.array([sidecar.key for sidecar in part.sidecars], pa.string()),
        "image": pa.array([sidecar.name for sidecar in part.sidecars], pa.string()),
    }
    if layout.labelled:
        classes = [text(name) for name in dataset.classes]
        labels = dataset.labels[part.samples].tolist()
        found["label"] = pa.array([classes[i] if i >= 0 else None for i in labels], pa.string())
    if dataset.groups is not None:
        named = layout.group_from
        hashes = dataset.groups[part.samples].tolist()
        found["group"] = pa.array(
            [
                None if not hashed else text(_group(sidecar.columns[named])) if named else f"{hashed:016x}"
                for hashed, sidecar in zip(hashes, part.sidecars, strict=True)
            ],
            pa.string(),
        )
    if layout.joined:
        found["json"] = pa.array([json.dumps(sidecar.columns) for sidecar in part.sidecars], pa.string())
    for name, (shown, kind) in layout.columns.items():
        values = [_cell(sidecar.columns.get(name), kind) for sidecar in part.sidecars]
        found[shown] = pa.array(values, kind)
    found["sample"] = pa.array(part.samples)
    return pa.table(found)


def _lists(vectors: NDArray[np.floating]) -> pa.Array:
    """Return vectors (n, width) as a column."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _cell(value: Any, kind: pa.DataType) -> Any:
    """Return a value of JSON as a column of this type holds it."""
    if value is None or kind != pa.string():
        return float(value) if value is not None and kind == pa.float64() else value
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def numbers(column: pa.Array, *, missing: bool) -> NDArray[Any]:
    """Return a column of numbers or true/false as an array.

    If values are `missing`, in this piece or another one, it is float64 with NaN in their place.
    """
    if not missing:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    column = column.cast(pa.float64() if not pa.types.is_boolean(column.type) else pa.int8())
    return np.array([np.nan if value is None else value for value in column.to_pylist()], np.float64)


def is_text(column: pa.Array) -> bool:
    """Say whether a column holds text."""
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def vectors_of(table: pa.Table) -> np.ndarray:
    """Return the vectors (n, width) in a table."""
    width = table.schema.field("features").type.list_size
    flat: np.ndarray = table["features"].combine_chunks().flatten().to_numpy()
    return flat.reshape(-1, width)
