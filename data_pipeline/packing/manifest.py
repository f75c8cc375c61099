"""Read a table that lists images: one row for each, with its label and, optionally, its group and its set."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline.storage.disk_list import DiskList
from data_pipeline.tables import cells, split_names, table
from isotorus.errors import UserError, one_line

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Columns:
    """Names of the columns for the image path, the label and, optionally, the group and the set."""

    image: str = "image"
    label: str = "label"
    group: str | None = None
    split: str | None = None
    """Column that says for each image whether it is for train, val or test."""

    @property
    def needed(self) -> dict[str, str]:
        """The columns that a table must have, with the option that names each."""
        options = {
            self.image: "--image-column",
            self.label: "--label-column",
            self.group: "--group-column",
            self.split: "--split-column",
        }
        return {name: option for name, option in options.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, which stands for one image."""

    image: str
    label: str
    """Class name; "" if the image has no label."""
    group: str
    """Name of its group; "" if it has none."""
    split: str
    """Name of its set: train, val or test; "" without a split column."""
    extra: str
    """All columns except image and label, as JSON; "" if there are none."""


def read(file: Path, columns: Columns, missing: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table; `data_pipeline.tables.cells` says what a cell means.

    The table is read twice, since the whole column decides what a label means. In `extra`, numbers and
    booleans of a Parquet file keep their type; cells of a CSV file are text. An image that several equal rows
    name is yielded once, with a note on stderr. Raises `UserError` if the file cannot be read, lacks a
    column, has no rows, names no set for a row, or has rows that contradict each other.
    """
    label_of, repeated = _of_the_column(file, columns, missing)
    first: dict[str, tuple[str, Row]] = {}
    again, images = "", 0
    for place, cells_of_row in table.read(file, columns.needed):
        row = _row(file, place, cells_of_row, columns, label_of, missing)
        name = cells.one_path(row.image) if repeated else ""
        if name not in repeated:
            yield row
            continue
        earlier, before = first.setdefault(name, (place, row))
        if before is row:
            yield row
            continue
        for what, ours, theirs in (
            ("label", row.label, before.label),
            ("group", row.group, before.group),
            ("set", row.split, before.split),
        ):
            if ours != theirs:
                raise UserError(
                    f"{file}: {earlier} and {place} both name {row.image!r}, with different {what}s "
                    f"{theirs!r} and {ours!r}; keep the right one"
                )
        again = again or f"{place} repeats {earlier}, {one_line(row.image[:200])}"
        images += 1
    if again:
        more = f", and {images - 1} more" if images > 1 else ""
        print(f"note: {file} names images twice, which are packed once: {again}{more}", file=sys.stderr)


def _of_the_column(
    file: Path, columns: Columns, missing: Sequence[str] | None
) -> tuple[Callable[[Any], str], set[str]]:
    """Return what a cell means as a label, and the images that several rows name, in their common
    spelling.
    """
    names = DiskList[str]()
    needed = {name: columns.needed[name] for name in (columns.image, columns.label)}

    def labels() -> Iterator[Any]:
        for _, row in table.read(file, needed, only=True):
            names.append(cells.one_path(_text(row[columns.image])))
            yield row[columns.label]

    label_of = cells.label_of(labels(), missing)
    if not names:
        raise UserError(f"{file} lists no images; expected a row for each")
    return label_of, {one for one, other in pairwise(names.ordered(str)) if one == other}


def _row(
    file: Path,
    place: str,
    row: dict[str, Any],
    columns: Columns,
    label_of: Callable[[Any], str],
    missing: Sequence[str] | None,
) -> Row:
    """Return a row of the table, whose cells are in `row` by column."""
    image, label = _text(row[columns.image]), row[columns.label]
    group = cells.group(row[columns.group], missing) if columns.group else ""
    side = _side(file, place, columns.split, row) if columns.split else ""
    for name in {columns.image, columns.label}:
        del row[name]
    try:
        return Row(image, label_of(label), group, side, _extra(file, place, row) if row else "")
    except KeyError:
        raise UserError(f"{file} changed while it was read; pack again when it is complete") from None


def _text(cell: Any) -> str:
    """Return the path in a cell."""
    return "" if cell is None else str(cell)


def _extra(file: Path, place: str, row: dict[str, Any]) -> str:
    """Return the other columns of a row as JSON; raise `UserError` if they cannot be written as JSON."""
    try:
        return _JSON.encode(without_nan(row))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file}, {place}: its columns cannot be kept as JSON ({error}); leave out the one that is "
            "nested too deeply or has no text"
        ) from None


def _side(file: Path, place: str, column: str, row: dict[str, Any]) -> str:
    """Return the set that a row names; raise `UserError` if it names none."""
    name = split_names.side(row[column])
    if name is None:
        raise UserError(
            f"{file}, {place}: {str(row[column])[:40]!r} in column {column!r} is no set of a split; expected "
            f"one of {split_names.accepted()}"
        )
    return name


def without_nan(value: Any) -> Any:
    """Return a value with null in place of NaN and infinity, which JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: without_nan(inner) for name, inner in value.items()}
        case list():
            return [without_nan(inner) for inner in value]
    return value
